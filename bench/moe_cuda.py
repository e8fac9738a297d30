"""The MoE layer on one GPU: coppice beside transformers' experts (grouped_mm, and the plain loop) on the same sizes, in the same run.

usage: moe_cuda.py [TOKENS,DIM,EXPERTS,TOP_K,WIDTH ...] [--write]

Wants a build for GPUs (`make bench` makes one where there is a GPU; or COPPICE_MOE_LAYER). Prints Markdown: tokens a second of one layer's
forward and backward in bf16, the share of the GPU's own rate in one large bf16 product, measured first, and peak device memory. --write also
puts it into bench/results/ under the name of the card.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import card  # noqa: E402

PROGRAM = pathlib.Path(os.environ.get("COPPICE_MOE_LAYER", HERE.parent / "build/release/bench/moe_layer"))
SIZES = ["16384,2048,64,8,1024", "16384,2048,128,8,768", "8192,4096,8,2,14336", "16384,2048,256,8,512"]


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
        seconds = card.median_seconds(transformers_layer(implementation, *sizes)[1], "cuda")
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    return {"seconds": seconds, "peak_bytes": torch.cuda.max_memory_allocated()}


def measure_coppice(kernel: str, sizes: list[int]) -> dict:
    torch.cuda.empty_cache()
    done = subprocess.run([PROGRAM, *map(str, sizes), kernel], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr.strip()}


def table(sizes: list[int], results: dict, peak: float) -> str:
    tokens, dim, experts, top_k, width = sizes
    lines = [f"{tokens} tokens, dimension {dim}, {experts} experts of width {width}, top-{top_k}\n",
             "| | tokens/s | coppice is | share of the product's rate | peak MiB |", "|---|---:|---:|---:|---:|"]
    flops = 3 * 2 * 3 * tokens * top_k * dim * width  # forward and twice that backward, of three matrices
    for name, result in results.items():
        if "failed" in result:
            lines.append(f"| {name} | {result['failed']} | | | |")
            continue
        ratio = f"{result['seconds'] / results['coppice']['seconds']:.2f} x" if "seconds" in results["coppice"] else ""
        lines.append(f"| {name} | {tokens / result['seconds']:.0f} | {ratio} | {flops / result['seconds'] / peak:.1%} | "
                     f"{result['peak_bytes'] / 2**20:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=SIZES)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("moe_cuda.py: no GPU that torch can use; run it on a machine that has one", file=sys.stderr)
        return 4
    if not PROGRAM.exists():
        print(f"moe_cuda.py: {PROGRAM} is not built; build it with `make bench`", file=sys.stderr)
        return 4
    name, peak = card.card_name("cuda"), card.product_rate("cuda")
    pages = [f"# The MoE layer on {name}\n\ntorch {torch.__version__}. One bf16 product of 8192 x 8192 x 8192 runs at {peak / 1e12:.0f} Tflop/s.",
             f"```\nbench/moe_cuda.py {' '.join(sys.argv[1:])}\n```"]
    print("\n\n".join(pages), flush=True)
    for text in options.sizes:
        sizes = [int(number) for number in text.split(",")]
        results = {"coppice": measure_coppice("fast", sizes),
                   "transformers grouped_mm": measure_transformers("grouped_mm", sizes),
                   "transformers loop": measure_transformers("eager", sizes),
                   "coppice reference": measure_coppice("reference", sizes)}
        pages.append(table(sizes, results, peak))
        print(f"\n{pages[-1]}", flush=True)
    if options.write:
        path = card.results_file("moe", name)
        path.write_text("\n\n".join(pages) + "\n")
        print(f"\nwrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
