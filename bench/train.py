"""Training steps: coppice beside transformers and beside the bare GEMMs, on the same sizes, threads and machine, in the same run.

usage: train.py [RECIPE ...] [--variants NAME,...] [--device auto|cpu|cuda] [--write]

default: all variants; on a CPU recipes/bench/e*.toml, on a GPU recipes/bench/gpu_*.toml; auto is a GPU where torch has one.

Prints Markdown: tokens a second (median of the recipe's steps but the first two), ratios, peak memory (of the GPU if that computes, as
nvidia-smi tells it), and on a GPU the share of the card's bf16 peak that the step's matrix products are. --write also puts it into
bench/results/ under the name of the card or processor.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import card  # noqa: E402

COPPICE = os.environ.get("COPPICE_BIN", str(HERE.parent / "build/release/coppice"))
VARIANTS = ["eager", "grouped_mm", "grouped_mm_bf16", "compiled"]


def recipes_for(device: str) -> list[pathlib.Path]:
    return sorted((HERE.parent / "recipes/bench").glob("gpu_*.toml" if device == "cuda" else "e*.toml"))


def step_flops(run: dict) -> float:
    """Of a step's matrix products, three for each weight that a token uses (forward, and twice as many backward), and of causal attention."""
    m, tokens, length = run["model"], run["train"]["batch_tokens"], run["data"]["sequence_length"]
    heads, kv_heads = m["heads"] * m["head_dim"], m["kv_heads"] * m["head_dim"]
    layer = m["dim"] * (2 * heads + 2 * kv_heads + m["experts"] + 3 * m["top_k"] * m["expert_width"])
    attention = 2 * heads * length / 2  # scores and values, half of all pairs
    return 6 * tokens * (m["layers"] * (layer + attention) + m["dim"] * m["vocab_size"])


def measure(device: str, *command: object) -> dict:
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with card.DeviceMemory(process.pid) as memory:
        out, err = process.communicate()
    if process.returncode != 0:
        print(err[-2000:], file=sys.stderr)
        return {"failed": err.strip().splitlines()[-1][:80] if err.strip() else f"status {process.returncode}"}
    result = json.loads(out[out.index("{"):])
    result["peak_bytes"] = memory.bytes if device == "cuda" else result.get("peak_rss_bytes")
    return result


def measure_all(recipe: pathlib.Path, variants: list[str], device: str) -> dict:
    results = {"coppice": measure(device, COPPICE, "train", "--config", recipe, "--train.device", device, "--json", "--quiet"),
               "bound: GEMMs and AdamW": measure(device, sys.executable, HERE / "peers/gemm_bound.py", recipe, device)}
    for variant in variants:
        results[f"transformers {variant}"] = measure(device, sys.executable, HERE / "peers/transformers_train.py", recipe, variant, device)
    return results


def table(results: dict, run: dict, peak: float | None) -> str:
    """Markdown; `peak` in floating-point operations a second, None where it is not known or not asked for."""
    share = ["of the bf16 peak"] if peak else []
    head = ["", "tokens/s", "coppice is", "peak MiB", *share]
    lines = [f"| {' | '.join(head)} |".replace("|  |", "| |", 1), "|---|" + "---:|" * (len(head) - 1)]
    ours = results["coppice"].get("tokens_per_s")
    for name, result in results.items():
        if "failed" in result:
            lines.append(f"| {name} | failed: {result['failed'].replace('|', '/')} |" + " |" * (len(head) - 2))
            continue
        rate = result["tokens_per_s"]
        cells = [name, f"{rate:.0f}", f"{ours / rate:.2f} x" if ours else "", f"{result['peak_bytes'] / 2**20:.0f}" if result.get("peak_bytes") else ""]
        if peak:
            cells.append(f"{step_flops(run) * rate / run['train']['batch_tokens'] / peak:.1%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=pathlib.Path)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    import torch
    import transformers
    has_gpu = torch.cuda.is_available()
    device = ("cuda" if has_gpu else "cpu") if options.device == "auto" else options.device
    if device == "cuda" and not has_gpu:
        print("train.py: no GPU that torch can use; run it on a machine that has one, or with --device cpu", file=sys.stderr)
        return 4
    name, peak = card.card_name(device), None
    pages = [f"# Training steps on {name}\n\ntorch {torch.__version__}, transformers {transformers.__version__}, {os.cpu_count()} cores, "
             f"{time.strftime('%Y-%m-%d')}.\n\n```\nbench/train.py {' '.join(sys.argv[1:])}\n```"]
    if device == "cuda":
        measured, peak = card.product_rate(device), card.peak_flops(name)
        told = f"its data sheet's peak is {peak / 1e12:.0f}" if peak else "the card is not in bench/card.py, so this stands for its peak"
        pages.append(f"One bf16 product of 8192 x 8192 x 8192 runs at {measured / 1e12:.0f} Tflop/s; {told}.")
        peak = peak or measured
        torch.cuda.empty_cache()
    print("\n\n".join(pages), flush=True)
    for recipe in options.recipes or recipes_for(device):
        results = measure_all(recipe, list(filter(None, options.variants.split(","))), device)
        pages.append(f"## {recipe.stem}\n\n{table(results, tomllib.loads(recipe.read_text()), peak)}")
        print(f"\n{pages[-1]}", flush=True)
    if options.write:
        path = card.results_file("train", name)
        path.write_text("\n\n".join(pages) + "\n")
        print(f"\nwrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
