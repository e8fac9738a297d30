"""What the forward pass of a MoE layer keeps in memory for its backward pass: coppice beside transformers' experts on the same sizes, on the CPU.

usage: moe_memory.py [TOKENS,DIM,EXPERTS,TOP_K,WIDTH ...]

Prints Markdown: bytes that malloc gave out more after the forward pass than before it, the output apart, in bf16; beside them the
pre-activations of all chosen experts, [tokens * top-K, 2 * width] in bf16, which a backward pass without recomputation cannot do without.
"""

import ctypes
import json
import os
import pathlib
import subprocess
import sys

from moe_cuda import transformers_layer

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = pathlib.Path(os.environ.get("COPPICE_MOE_LAYER", HERE.parent / "build/release/bench/moe_layer"))
SIZES = ["2048,256,64,8,256", "2048,256,256,8,256", "4096,512,32,4,512"]


class MallocInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = MallocInfo


def bytes_in_use() -> int:
    info = mallinfo2()
    return info.uordblks + info.hblkhd


def kept_by_transformers(implementation: str, sizes: list[int]) -> int:
    forward, step = transformers_layer(implementation, *sizes, device="cpu")
    step()  # what is made once
    before = bytes_in_use()
    y = forward()
    return bytes_in_use() - before - y.nbytes


def kept_by_coppice(sizes: list[int]) -> int:
    done = subprocess.run([PROGRAM, *map(str, sizes), "fast", "cpu"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["kept_bytes"]


def main() -> int:
    if not PROGRAM.exists():
        print(f"moe_memory.py: {PROGRAM} is not built; `cmake --preset release` and build the target moe_layer", file=sys.stderr)
        return 4
    print("| tokens, dimension, experts, top-K, width | pre-activations MiB | coppice | transformers grouped_mm | transformers eager |\n|---|---:|---:|---:|---:|")
    for text in sys.argv[1:] or SIZES:
        tokens, _, _, top_k, width = sizes = [int(number) for number in text.split(",")]
        bound = tokens * top_k * 2 * width * 2
        kept = [kept_by_coppice(sizes), kept_by_transformers("grouped_mm", sizes), kept_by_transformers("eager", sizes)]
        print(f"| {text} | {bound / 2**20:.1f} | " + " | ".join(f"{k / 2**20:.1f} ({k / bound:.2f} x)" for k in kept) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
