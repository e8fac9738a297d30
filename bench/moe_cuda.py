"""The MoE layer on one GPU: coppice beside transformers' experts (grouped_mm, and the plain loop) on the same sizes, in the same run.

usage: moe_cuda.py [TOKENS,DIM,EXPERTS,TOP_K,WIDTH ...]

Wants a build with the preset `cuda` (cmake --preset cuda, or COPPICE_MOE_LAYER). Prints Markdown: tokens a second of one layer's forward and
backward in bf16, the share of the GPU's own rate in one large bf16 product, measured first, and peak device memory.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import torch

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = pathlib.Path(os.environ.get("COPPICE_MOE_LAYER", HERE.parent / "build/cuda/bench/moe_layer"))
SIZES = ["16384,2048,64,8,1024", "16384,2048,128,8,768", "8192,4096,8,2,14336", "16384,2048,256,8,512"]
WARM_UP, REPEATS = 3, 20


def median_seconds(step) -> float:
    seconds = []
    for i in range(WARM_UP + REPEATS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        step()
        torch.cuda.synchronize()
        if i >= WARM_UP:
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def product_rate(n: int = 8192) -> float:
    """Floating-point operations a second of an n x n x n product in bf16."""
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / median_seconds(lambda: a @ b)


def transformers_layer(implementation: str, tokens: int, dim: int, experts: int, top_k: int, width: int, device: str = "cuda"):
    """Forward of transformers' experts, and one step of forward and backward."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeExperts
    config = Qwen3MoeConfig(hidden_size=dim, moe_intermediate_size=width, num_experts=experts, num_experts_per_tok=top_k)
    config._experts_implementation = implementation
    layer = Qwen3MoeExperts(config).to(device, torch.bfloat16)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    x = torch.randn(tokens, dim, device=device, dtype=torch.bfloat16, requires_grad=True)
    gates = torch.rand(tokens, top_k, device=device, requires_grad=True)
    index = torch.rand(tokens, experts, device=device).argsort(1)[:, :top_k].contiguous()
    grad = torch.randn_like(x)
    leaves = [x, gates, *layer.parameters()]
    def forward():
        return layer(x, index, gates.to(x.dtype))

    return forward, lambda: torch.autograd.grad(forward(), leaves, grad)


def measure_transformers(implementation: str, sizes: list[int]) -> dict:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        seconds = median_seconds(transformers_layer(implementation, *sizes)[1])
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    return {"seconds": seconds, "peak_bytes": torch.cuda.max_memory_allocated()}


def measure_coppice(kernel: str, sizes: list[int]) -> dict:
    torch.cuda.empty_cache()
    done = subprocess.run([PROGRAM, *map(str, sizes), kernel], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr.strip()}


def main() -> int:
    if not torch.cuda.is_available():
        print("moe_cuda.py: no GPU that torch can use; run it on a machine that has one", file=sys.stderr)
        return 4
    if not PROGRAM.exists():
        print(f"moe_cuda.py: {PROGRAM} is not built; `cmake --preset cuda` and build the target moe_layer", file=sys.stderr)
        return 4
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    peak = product_rate()
    print(f"One bf16 product of 8192 x 8192 x 8192: {peak / 1e12:.0f} Tflop/s")
    for text in sys.argv[1:] or SIZES:
        tokens, dim, experts, top_k, width = sizes = [int(number) for number in text.split(",")]
        results = {"coppice": measure_coppice("fast", sizes),
                   "transformers grouped_mm": measure_transformers("grouped_mm", sizes),
                   "transformers loop": measure_transformers("eager", sizes),
                   "coppice reference": measure_coppice("reference", sizes)}
        print(f"\n{tokens} tokens, dimension {dim}, {experts} experts of width {width}, top-{top_k}\n")
        print("| | tokens/s | coppice is | share of the product's rate | peak MiB |\n|---|---:|---:|---:|---:|")
        flops = 3 * 2 * 3 * tokens * top_k * dim * width  # forward and twice that backward, of three matrices
        for name, result in results.items():
            if "failed" in result:
                print(f"| {name} | {result['failed']} | | | |")
                continue
            ratio = f"{result['seconds'] / results['coppice']['seconds']:.2f} x" if "seconds" in results["coppice"] else ""
            print(f"| {name} | {tokens / result['seconds']:.0f} | {ratio} | {flops / result['seconds'] / peak:.1%} | "
                  f"{result['peak_bytes'] / 2**20:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
