"""`coppice plan --measure`: the line through step times at two numbers of experts, as plan draws it, against a third that is measured in turns with them.

usage: plan.py [--threads N]

Three configurations (recipes of other widths, top-K and numbers of experts). Prints Markdown; the exit status is 1 if a prediction is off by more than 10 %.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
COPPICE = os.environ.get("COPPICE_BIN", str(HERE.parent / "build/release/coppice"))
GENERATE = pathlib.Path(COPPICE).parent / "tests/families_generate"
LIMIT = 0.10
# family, sizes, (measured, measured, predicted), tokens a step
CONFIGURATIONS = [("qwen3_moe", dict(model_dim=256, expert_width=256, num_layers=4, num_heads=8, num_kv_heads=8, head_dim=32, vocab_size=8192, top_k=4), (16, 32, 64), 2048),
                  ("glm4_moe", dict(model_dim=256, expert_width=128, num_layers=4, num_heads=8, num_kv_heads=4, head_dim=32, vocab_size=4096, top_k=8), (32, 64, 128), 2048),
                  ("mixtral", dict(model_dim=512, expert_width=512, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=64, vocab_size=4096, top_k=2), (8, 16, 24), 4096)]


def measured(model, tokens, experts, threads):
    """Seconds a step by number of experts, timed in turns."""
    command = [COPPICE, "plan", model, "--measure", "--measure-experts", ",".join(map(str, experts)), "--measure-tokens", tokens, *(["--threads", threads] if threads else []),
               "--json", "--quiet"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return dict(json.loads(done.stdout)["step"]["measured"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    worst = 0.0
    print(f"{options.threads or os.cpu_count()} threads\n\n| family | top-K | width | measured at | ms | predicted at | ms | measured there | error |\n|---|---:|---:|---|---|---:|---:|---:|---:|")
    for family, sizes, (first, second, third), tokens in CONFIGURATIONS:
        with tempfile.TemporaryDirectory() as directory:
            model = f"{directory}/m"
            subprocess.run([GENERATE, model, family, "BF16", f"num_experts={first}", *(f"{key}={value}" for key, value in sizes.items())], check=True)
            seconds = measured(model, tokens, (first, second, third), options.threads)
        found = seconds[third]
        expected = seconds[first] + (seconds[second] - seconds[first]) / (second - first) * (third - first)
        error = expected / found - 1
        worst = max(worst, abs(error))
        print(f"| {family} | {sizes['top_k']} | {sizes['expert_width']} | {first}, {second} | {1e3 * seconds[first]:.0f}, {1e3 * seconds[second]:.0f} | {third} | {1e3 * expected:.0f} | "
              f"{1e3 * found:.0f} | {100 * error:+.1f} % |", flush=True)
    print(f"\nlargest error {100 * worst:.1f} %, limit {100 * LIMIT:.0f} %")
    return 1 if worst > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
