"""One training step, coppice beside transformers on the same model, tokens and threads in the same run.

usage: train.py [--experts 32] [--top-k 4] [--steps 9] [--dtype bf16]

qwen3_moe: 4 layers, hidden 256, 8 heads, expert width 256, vocabulary 8192, 8 x 256 random tokens; forward, backward, AdamW.
Prints tokens per second (median after two warm-up steps) and ratios.
"""

import argparse
import json
import os
import pathlib
import statistics
import struct
import subprocess
import tempfile
import time

import numpy
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
COPPICE = os.environ.get("COPPICE_BIN", str(HERE.parent / "build/release/coppice"))
VOCABULARY, BATCH, LENGTH = 8192, 8, 256


def write_tokens(prefix: pathlib.Path, count: int) -> None:
    """Random ids as one document of a Megatron data set."""
    ids = numpy.random.default_rng(0).integers(0, VOCABULARY, count, dtype=numpy.uint16)
    prefix.with_suffix(".bin").write_bytes(ids.tobytes())
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 1, 2) + struct.pack("<iq", count, 0) + struct.pack("<qq", 0, 1)
    prefix.with_suffix(".idx").write_bytes(index)


def peer(model: Qwen3MoeForCausalLM, dtype: str, steps: int) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    tokens = torch.randint(0, VOCABULARY, (steps, BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    seconds = []
    for batch in tokens:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return BATCH * LENGTH / statistics.median(seconds[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = Qwen3MoeConfig(vocab_size=VOCABULARY, hidden_size=256, intermediate_size=256, moe_intermediate_size=256, num_hidden_layers=4,
                            num_attention_heads=8, num_key_value_heads=8, head_dim=32, num_experts=options.experts,
                            num_experts_per_tok=options.top_k, norm_topk_prob=True, tie_word_embeddings=False)
    with tempfile.TemporaryDirectory() as work:
        directory = pathlib.Path(work)
        torch.manual_seed(0)
        model = Qwen3MoeForCausalLM(config)
        model.save_pretrained(directory / "model")
        write_tokens(directory / "tokens", BATCH * LENGTH * (options.steps + 4))
        command = [COPPICE, "train", "--model.path", str(directory / "model"), "--data.train", str(directory / "tokens"),
                   "--data.sequence_length", str(LENGTH), "--train.steps", str(options.steps), "--train.batch_tokens", str(BATCH * LENGTH),
                   "--train.micro_batch", str(BATCH), "--train.dtype", options.dtype, "--train.threads", str(options.threads),
                   "--optimizer.lr", "3e-4", "--schedule.kind", "constant", "--schedule.warmup", "0", "--balance.kind", "none", "--json"]
        ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["tokens_per_s"]
        print(f"{options.experts} experts, top-{options.top_k}, {options.dtype}, {options.threads} threads, {BATCH} x {LENGTH} tokens a step")
        print(f"{'':40s}{'tokens/s':>10s}{'ratio':>8s}")
        print(f"{'coppice':40s}{ours:10.0f}{1.0:8.2f}")
        for implementation in ("eager", "grouped_mm"):
            model.set_experts_implementation(implementation)
            theirs = peer(model, options.dtype, options.steps)
            print(f"{'transformers ' + implementation:40s}{theirs:10.0f}{theirs / ours:8.2f}")


if __name__ == "__main__":
    main()
