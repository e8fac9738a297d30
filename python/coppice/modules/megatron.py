"""Models of Megatron Core."""
class MegatronLayout:
    name = "Megatron Core"
    def recognises(self, model): return False
