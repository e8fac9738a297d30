"""torchtitan's own Trainer on the CPU: what it asks of a GPU is answered for the CPU, and its text is made of numbers."""

import contextlib
import os
import sys
import types
from unittest import mock

import one_rank
import torch

TINY = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, vocab_size=64, hidden_dim=64, moe_inter_dim=24)
EXPERTS, LENGTH = 4, 16


class _Device:
    """The questions that torchtitan asks ``torch.cuda``."""

    set_device = synchronize = empty_cache = reset_peak_memory_stats = staticmethod(lambda *asked: None)
    current_device = staticmethod(lambda: 0)
    get_device_name = staticmethod(lambda device: "cpu")
    get_device_properties = staticmethod(lambda device: types.SimpleNamespace(total_memory=1 << 33))
    memory_stats = staticmethod(lambda device: {})


class _Numbers:
    """A data loader whose place in the data is a part of a checkpoint."""

    def __init__(self, **asked):
        self.at = 0

    def __iter__(self):
        while True:
            self.at += 1
            tokens = (torch.arange(2 * (LENGTH + 1)).reshape(2, LENGTH + 1) + self.at) % TINY["vocab_size"]
            yield {"input": tokens[:, :-1]}, tokens[:, 1:]

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


@contextlib.contextmanager
def histograms():
    """torchtitan counts whole numbers with torch.histc, which torch has on GPUs only."""
    real = torch.histc
    with mock.patch.object(torch, "histc", lambda tensor, **more: real(tensor.float(), **more).to(tensor.dtype)):
        yield


def tiny_arguments(num_shared_experts=0, **more):
    """Of a qwen3 with experts whose forward pass runs on the CPU."""
    from torchtitan.models.moe import MoEArgs
    from torchtitan.models.qwen3 import Qwen3ModelArgs

    moe = MoEArgs(num_experts=EXPERTS, num_shared_experts=num_shared_experts, top_k=2, use_grouped_mm=False, score_func="softmax", route_norm=True)
    return Qwen3ModelArgs(**TINY, max_seq_len=32, moe_enabled=True, moe_args=moe, **more)


def tiny_model(args):
    """With the same values for the same arguments, and a selection bias that is not zero."""
    from torchtitan.models.qwen3 import Qwen3Model

    torch.manual_seed(0)
    model = Qwen3Model(args)
    with torch.no_grad():
        model.init_weights()
    for name, buffer in model.named_buffers():
        if name.endswith("expert_bias"):
            buffer.copy_(torch.linspace(-0.1, 0.1, buffer.numel()))
    return model


@contextlib.contextmanager
def torchtitan():
    """Its Trainer starts in this process, and its flavor ``debugmodel_moe`` of qwen3 is tiny."""
    from torchtitan import train
    from torchtitan.models import qwen3
    from torchtitan.models.moe import MoEArgs

    moe = MoEArgs(num_experts=EXPERTS, num_shared_experts=0, top_k=2, use_grouped_mm=False, score_func="softmax")
    tiny = {"debugmodel_moe": qwen3.Qwen3ModelArgs(**TINY, moe_enabled=True, moe_args=moe)}
    real = qwen3.get_train_spec

    def spec():
        out = real()
        out.build_tokenizer_fn, out.build_dataloader_fn = None, _Numbers
        return out

    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("torchtitan.") and hasattr(module, "device_type"):
                stack.enter_context(mock.patch.object(module, "device_type", "cpu"))
                stack.enter_context(mock.patch.object(module, "device_module", _Device, create=True))
        stack.enter_context(mock.patch.object(train.time, "sleep"))
        stack.enter_context(mock.patch.dict(os.environ, one_rank.variables()))
        stack.enter_context(mock.patch.dict(qwen3.qwen3_args, tiny))
        stack.enter_context(mock.patch.object(qwen3, "get_train_spec", spec))
        stack.enter_context(histograms())
        yield


def start(words):
    """What ``python -m torchtitan.train`` does with these words; the Trainer that trained."""
    from torchtitan import train

    made = []

    class Kept(train.Trainer):
        def __init__(self, config):
            super().__init__(config)
            made.append(self)

    small = ["--training.local_batch_size", "2", "--training.seq_len", str(LENGTH)]
    config = train.ConfigManager().parse_args([*words, *small])
    with mock.patch.object(train.ConfigManager, "parse_args", lambda self: config):
        train.main(Kept)
    return made[0]
