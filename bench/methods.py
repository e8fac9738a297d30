"""The expert methods that cost more than a copy: seconds per GB of new experts, beside the same mathematics in PyTorch; and the normal generator.

usage: methods.py [--size GB] [--seconds S] [--work DIR]

Prints Markdown. coppice reads and writes a checkpoint (bf16, matrices of 2048x1024) on the disk; PyTorch has its matrices in memory. Both use all
cores, the normals one.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
COPPICE = os.environ.get("COPPICE_BIN", str(HERE.parent / "build/release/coppice"))
NORMALS = os.environ.get("COPPICE_NORMALS", str(HERE.parent / "build/release/bench/normals"))
METHODS = ["copy_noise", "orthogonal", "svd_perturb", "svd_mix", "sparse_code_mix"]


def output_of(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def expand_seconds(source: pathlib.Path, output: pathlib.Path, method: str) -> float:
    start = time.perf_counter()
    output_of(COPPICE, "expand", source, output, "--experts", "2x", "--router-init", "copy", "--expert-init", method, "--quiet")
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return seconds


def randn_rate(seconds: float) -> float:
    """Normals a second of torch.randn on one thread, into memory that is there."""
    code = f"""
import time, torch
torch.set_num_threads(1)
out = torch.empty(1 << 20)
made, start = 0, time.perf_counter()
while time.perf_counter() - start < {seconds}:
    out.normal_()
    made += out.numel()
print(made / (time.perf_counter() - start))
"""
    return float(output_of(sys.executable, "-c", code))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=0.15, metavar="GB", help="size of the checkpoint")
    parser.add_argument("--seconds", type=float, default=10, help="least time for each measurement in PyTorch")
    parser.add_argument("--work", default=None, help="folder on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        source, output = pathlib.Path(work) / "source", pathlib.Path(work) / "output"
        output_of(sys.executable, HERE / "checkpoint.py", source, options.size)
        seen = output_of(COPPICE, "inspect", source, "--json")
        gigabytes = 2 * json.loads(seen)["parameters"]["experts"] / 1e9
        print(f"expert methods, {gigabytes:.2f} GB of new experts in bf16; {os.cpu_count()} cores")
        print("| | coppice, s per GB | PyTorch, s per GB | ratio |\n|---|---:|---:|---:|")
        for method in METHODS:
            ours = expand_seconds(source, output, method) / gigabytes
            theirs = float(output_of(sys.executable, HERE / "peers/torch_methods.py", source, method, options.seconds))
            print(f"| {method} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.1f} |", flush=True)
    ours, theirs = float(output_of(NORMALS, options.seconds)), randn_rate(options.seconds)
    print(f"\nnormals on one core: {ours / 1e6:.0f} M/s, torch.randn {theirs / 1e6:.0f} M/s, ratio {ours / theirs:.1f}")


if __name__ == "__main__":
    main()
