"""Models of torchtitan."""
class TorchtitanLayout:
    name = "torchtitan"
    def recognises(self, model): return False
