"""Expansion on disk, coppice beside `cp -r` and a plain safetensors script, on the same generated checkpoint in the same run.

usage: expand.py [--gigabytes 1] [--rounds 3] [--work DIR]

Prints medians, ratios to coppice and peak resident memory. Warm page cache; what is written is synced inside the timed command.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
COPPICE = os.environ.get("COPPICE_BIN", str(HERE.parent / "build/release/coppice"))


def make_checkpoint(directory: pathlib.Path, gigabytes: float) -> int:
    """A bf16 qwen3_moe whose experts hold nearly all of the bytes."""
    hidden, width, experts, layers = 1024, 512, 32, 4
    layers = max(1, round(gigabytes * 1e9 / (experts * 3 * hidden * width * 2)))
    config = Qwen3MoeConfig(vocab_size=4096, hidden_size=hidden, intermediate_size=width, moe_intermediate_size=width, num_hidden_layers=layers,
                            num_attention_heads=8, num_key_value_heads=4, head_dim=128, num_experts=experts, num_experts_per_tok=4,
                            norm_topk_prob=True, dtype="bfloat16")
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="1GB")
    return sum(f.stat().st_size for f in directory.iterdir())


def timed(command: list[str], output: pathlib.Path) -> tuple[float, int]:
    """Wall seconds until the output is on disk, and peak anonymous plus file memory of the process in bytes."""
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    for path in output.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    seconds = time.perf_counter() - start
    if status != 0:
        sys.exit(f"{command[0]} failed: {process.stderr.read().decode()[-500:]}")
    return seconds, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", default=None, help="folder on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        source, output = pathlib.Path(work) / "source", pathlib.Path(work) / "output"
        size = make_checkpoint(source, options.gigabytes)
        twice = f"mkdir {output} && cp -r {source} {output}/a && cp -r {source} {output}/b"  # as many bytes as the expansion writes
        contestants = {
            "coppice copy": [COPPICE, "expand", str(source), str(output), "--experts", "2x", "--router-init", "copy"],
            "coppice copy_noise": [COPPICE, "expand", str(source), str(output), "--experts", "2x", "--expert-init", "copy_noise"],
            "cp -r, same bytes": ["sh", "-c", twice],
            "safetensors script": [sys.executable, str(HERE / "peers/expand_script.py"), str(source), str(output)],
        }
        times = {name: [] for name in contestants}
        peak = dict.fromkeys(contestants, 0)
        for _ in range(options.rounds):  # in turn, so that a noisy minute hits all alike
            for name, command in contestants.items():
                seconds, bytes_ = timed(command, output)
                times[name].append(seconds)
                peak[name] = max(peak[name], bytes_)
        base = statistics.median(times["coppice copy"])
        print(f"expand 2x, {size / 1e9:.2f} GB bf16 in, {options.rounds} rounds, median of wall seconds until synced")
        print(f"{'':22s}{'seconds':>9s}{'ratio':>8s}{'peak MiB':>10s}")
        for name, values in times.items():
            median = statistics.median(values)
            print(f"{name:22s}{median:9.2f}{median / base:8.2f}{peak[name] / 2**20:10.0f}")


if __name__ == "__main__":
    main()
