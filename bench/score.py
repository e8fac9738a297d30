"""`coppice score` beside one forward and backward pass of transformers over the same tokens, whole and one layer at a time.

usage: score.py [--threads N] [--batches N]

A generated qwen3_moe (some 250 MB), random tokens, f32. Prints Markdown: tokens a second and peak resident memory. transformers computes the gradients of
the experts alone (the rest is frozen, as it is in `score`) and no metric; coppice all metrics of every expert. "one layer" is `--max-memory 1KB`: no two layers are
in memory together, and all but the last go forward twice.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
from token_files import write_tokens  # noqa: E402

COPPICE = os.environ.get("COPPICE_BIN", str(HERE.parent / "build/release/coppice"))
GENERATE = pathlib.Path(COPPICE).parent / "tests/families_generate"
SIZES = dict(model_dim=512, expert_width=256, num_experts=16, top_k=4, num_layers=8, num_heads=8, num_kv_heads=4, head_dim=64, vocab_size=4096, max_positions=512)
BATCH_TOKENS, LENGTH = 8192, 256
WINDOWS_A_PASS = 8  # 2,048 tokens, as in score


def write_random_tokens(prefix, count):
    draw = random.Random(1)
    write_tokens(prefix, [draw.randrange(SIZES["vocab_size"]) for _ in range(count)])


def transformers_pass(model, tokens, batches, threads):
    """Run in a process of its own: prints seconds of the passes, loading left out, and peak memory."""
    import torch
    from transformers import AutoModelForCausalLM
    torch.set_num_threads(threads)
    ids = torch.frombuffer(bytearray(pathlib.Path(f"{tokens}.bin").read_bytes()), dtype=torch.int16).long()
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_(".experts." in name)
    begin = time.perf_counter()
    for batch in range(batches):
        reference.zero_grad()
        for first in range(0, BATCH_TOKENS, WINDOWS_A_PASS * LENGTH):
            window = ids[batch * BATCH_TOKENS + first:][:WINDOWS_A_PASS * LENGTH + 1]
            logits = reference(window[:-1].view(-1, LENGTH)).logits
            (torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[1:]) * (WINDOWS_A_PASS * LENGTH / BATCH_TOKENS)).backward()
    print(json.dumps({"seconds": time.perf_counter() - begin, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def coppice_pass(model, tokens, out, batches, threads, *options):
    """Seconds of the passes: of a run with these batches, less one with a single batch, and that share added again."""
    seconds, peak = {}, 0
    for count in (1, batches + 1):
        begin = time.perf_counter()
        process = subprocess.Popen([COPPICE, "score", model, tokens, "--out", out, "--batches", str(count), "--batch-tokens", str(BATCH_TOKENS), "--sequence-length", str(LENGTH),
                                    "--threads", str(threads), "--quiet", *options], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit("coppice score failed")
        seconds[count], peak = time.perf_counter() - begin, usage.ru_maxrss * 1024
    return {"seconds": seconds[batches + 1] - seconds[1], "peak_bytes": peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--transformers", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.transformers:
        return transformers_pass(*options.transformers, options.batches, options.threads)
    with tempfile.TemporaryDirectory() as directory:
        model, tokens = f"{directory}/m", f"{directory}/t"
        subprocess.run([GENERATE, model, "qwen3_moe", "F32", *(f"{key}={value}" for key, value in SIZES.items())], check=True)
        write_random_tokens(tokens, (options.batches + 1) * BATCH_TOKENS + 1)
        peer = subprocess.run([sys.executable, __file__, "--threads", str(options.threads), "--batches", str(options.batches), "--transformers", model, tokens],
                              capture_output=True, text=True, check=True)
        results = {"coppice, whole": coppice_pass(model, tokens, f"{directory}/s.json", options.batches, options.threads),
                   "coppice, one layer at a time": coppice_pass(model, tokens, f"{directory}/s.json", options.batches, options.threads, "--max-memory", "1KB"),
                   "transformers, forward and backward": json.loads(peer.stdout)}
        print(f"{options.threads} threads, {options.batches * BATCH_TOKENS} tokens\n\n| | tokens/s | of transformers' rate | peak MiB |\n|---|---:|---:|---:|")
        for name, result in results.items():
            ratio = results["transformers, forward and backward"]["seconds"] / result["seconds"]
            print(f"| {name} | {options.batches * BATCH_TOKENS / result['seconds']:.0f} | {ratio:.2f} x | {result['peak_bytes'] / 2**20:.0f} |")


if __name__ == "__main__":
    main()
