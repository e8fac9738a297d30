"""`expand_` of a model in memory beside copies of its bytes, in turn in the same process.

usage: expand_in_memory.py [--size GB] [--rounds N] [--expert-init METHOD] [--optimizer]

The model is a qwen3_moe in bf16 of about `--size` GB before the expansion (default 4; afterwards twice as much). Prints a Markdown table: the
median and best seconds of `coppice.expand_` to twice the experts, of a copy of the model's bytes that is kept, as a deepcopy makes it, and of the
first writing to as many bytes of new memory as the expanded model has (which is what the machine takes to give them out); ratios are medians
over rounds of the two times of one round. The peak is of resident memory during the call, beside the bytes that the model has afterwards.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "build/python/package")]
import coppice  # noqa: E402
from card import card_name  # noqa: E402
from checkpoint import DIM, HEADS, KV_HEADS, VOCABULARY, WIDTH  # noqa: E402

EXPERTS = 32


def made_model(gigabytes: float) -> torch.nn.Module:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    layers = max(1, round(gigabytes * 1e9 / (2 * 3 * DIM * WIDTH * EXPERTS)))
    config = Qwen3MoeConfig(hidden_size=DIM, moe_intermediate_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=layers, head_dim=DIM // HEADS,
                            num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, vocab_size=VOCABULARY, num_experts=EXPERTS, num_experts_per_tok=2)
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.02) if parameter.numel() > 1 << 20 else parameter.normal_()  # every page is touched
    return model


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW behind a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        optimizer.state[parameter] = {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(parameter).fill_(0.01),
                                      "exp_avg_sq": torch.zeros_like(parameter).fill_(0.01)}
    return optimizer


def tensors_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> list[torch.Tensor]:
    states = [] if optimizer is None else [t for state in optimizer.state.values() for t in state.values()]
    return [*(p.detach() for p in model.parameters()), *states]


def bytes_of(tensors: list[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def copied_in(tensors: list[torch.Tensor]) -> float:
    """Seconds for copies that all exist at the end, as a deepcopy makes them."""
    begin = time.perf_counter()
    copies = [tensor.clone() for tensor in tensors]
    seconds = time.perf_counter() - begin
    del copies
    return seconds


def filled_in(shapes: list[tuple[torch.Size, torch.dtype]]) -> float:
    """Seconds for the first writing to as much new memory: what the machine needs to give it out."""
    begin = time.perf_counter()
    tensors = [torch.empty(shape, dtype=dtype).fill_(1) for shape, dtype in shapes]
    seconds = time.perf_counter() - begin
    del tensors
    return seconds


class Peak:
    """Resident bytes before a piece of work, and the most during it."""

    def __enter__(self) -> "Peak":
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        self.before = self._read("VmRSS")
        return self

    def __exit__(self, *_) -> None:
        self.most = self._read("VmHWM")

    @staticmethod
    def _read(name: str) -> int:
        line = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=4.0, metavar="GB", help="size of the model before the expansion")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--expert-init", default="copy", metavar="METHOD")
    parser.add_argument("--optimizer", action="store_true", help="with the state of AdamW, which is twice as large as the model")
    options = parser.parse_args()
    times: dict[str, list[float]] = {"expand_": [], "copy": [], "fill": []}
    extra, sizes = 0, (0, 0)
    for _ in range(options.rounds):
        model = made_model(options.size)
        optimizer = optimizer_of(model) if options.optimizer else None
        plan = coppice.plan(model, "2x", expert_init=options.expert_init)
        before = tensors_of(model, optimizer)
        size = bytes_of(before)
        times["copy"].append(copied_in(before))
        del before
        with Peak() as peak:
            begin = time.perf_counter()
            coppice.expand_(model, plan, optimizer=optimizer)
            times["expand_"].append(time.perf_counter() - begin)
        after = tensors_of(model, optimizer)
        sizes = (size, bytes_of(after))
        extra = max(extra, peak.most - peak.before - (sizes[1] - sizes[0]))
        shapes = [(tensor.shape, tensor.dtype) for tensor in after]
        del model, optimizer, after
        times["fill"].append(filled_in(shapes))
    with_state = " and AdamW's state" if options.optimizer else ""
    print(f"expand_ 2x, {options.expert_init}, of a model{with_state} of {sizes[0] / 1e9:.2f} GB bf16 ({sizes[1] / 1e9:.2f} GB afterwards); "
          f"{options.rounds} rounds; {card_name('cpu')}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
          f"peak beside the expanded model {extra / 2**20:.0f} MiB")
    print("| | GB written | median s | best s | expand_ to it |\n|---|---:|---:|---:|---:|")
    written = {"expand_": sizes[1], "copy": sizes[0], "fill": sizes[1]}
    for name, seconds in times.items():
        ratio = statistics.median(e / s for e, s in zip(times["expand_"], seconds, strict=True))
        print(f"| {name} | {written[name] / 1e9:.2f} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
