"""Training steps: coppice beside transformers and beside the bare GEMMs, on the same sizes, threads and machine, in the same run.

usage: train.py [RECIPE ...] [--variants NAME,...]      (default: recipes/bench/*.toml and all variants)

Prints Markdown: tokens a second (median of the recipe's steps but the first two), ratios, peak resident memory.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
COPPICE = os.environ.get("COPPICE_BIN", str(HERE.parent / "build/release/coppice"))
VARIANTS = ["eager", "grouped_mm", "grouped_mm_bf16", "compiled"]


def measure(*command: object) -> dict | None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    return json.loads(done.stdout[done.stdout.index("{"):])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=pathlib.Path)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    options = parser.parse_args()
    for recipe in options.recipes or [HERE.parent / f"recipes/bench/{name}.toml" for name in ("e32_k4", "e64_k8", "e256_k8")]:
        results = {"coppice": measure(COPPICE, "train", "--config", recipe, "--json", "--quiet"),
                   "bound: GEMMs and AdamW": measure(sys.executable, HERE / "peers/gemm_bound.py", recipe)}
        for variant in filter(None, options.variants.split(",")):
            results[f"transformers {variant}"] = measure(sys.executable, HERE / "peers/transformers_train.py", recipe, variant)
        ours = results["coppice"]["tokens_per_s"]
        print(f"\n{recipe.stem}, {os.cpu_count()} cores\n\n| | tokens/s | coppice is | peak MiB |\n|---|---:|---:|---:|")
        for name, result in results.items():
            if result is None:
                print(f"| {name} | failed | | |")
                continue
            peak = f"{result['peak_rss_bytes'] / 2**20:.0f}" if "peak_rss_bytes" in result else ""
            print(f"| {name} | {result['tokens_per_s']:.0f} | {ours / result['tokens_per_s']:.2f} x | {peak} |", flush=True)


if __name__ == "__main__":
    main()
