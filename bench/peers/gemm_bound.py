"""What a training step cannot do without: its GEMMs in bf16, one for each expert, and a fused fp32 AdamW. Nothing between them.

usage: gemm_bound.py RECIPE [cpu|cuda]      prints one JSON object
"""

import json
import os
import pathlib
import statistics
import sys
import time
import tomllib

import torch


def main(recipe: pathlib.Path, device: str = "cpu") -> None:
    run = tomllib.loads(recipe.read_text())
    m, tokens = run["model"], run["train"]["batch_tokens"]
    torch.set_num_threads(os.cpu_count())
    dim, width, experts, heads = m["dim"], m["expert_width"], m["experts"], m["heads"] * m["head_dim"]
    rows = tokens * m["top_k"] // experts
    # (rows, in, out, how often): every one is a product forward and two backward
    dense = [(tokens, dim, heads, m["layers"]), (tokens, dim, m["kv_heads"] * m["head_dim"], 2 * m["layers"]), (tokens, heads, dim, m["layers"]),
             (tokens, dim, m["vocab_size"], 1)]
    of_experts = [(rows, dim, 2 * width, m["layers"] * experts), (rows, width, dim, m["layers"] * experts)]

    def matrix(*shape):  # weights of different experts are different memory
        return torch.randn(*shape, dtype=torch.bfloat16, device=device)

    work = []
    for n, k, out, count in dense + of_experts:
        inputs, grads = matrix(n, k), matrix(n, out)
        for _ in range(count):
            work.append((inputs, grads, matrix(out, k)))
    parameters = [torch.nn.Parameter(torch.randn(sum(w.numel() for *_, w in work) + m["vocab_size"] * dim, device=device))]
    parameters[0].grad = torch.randn_like(parameters[0]) * 1e-3
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = []
    for _ in range(7):
        wait()
        start = time.perf_counter()
        for inputs, grads, weight in work:
            torch.mm(inputs, weight.t())
            torch.mm(grads, weight)
            torch.mm(grads.t(), inputs)
        wait()
        gemms = time.perf_counter() - start
        optimizer.step()
        wait()
        seconds.append((time.perf_counter() - start, gemms))
    step, gemms = (statistics.median(s[i] for s in seconds[2:]) for i in (0, 1))
    print(json.dumps({"tokens_per_s": tokens / step, "gemm_seconds": gemms, "adamw_seconds": step - gemms}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
