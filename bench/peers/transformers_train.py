"""Training steps of transformers' qwen3_moe on random tokens, sizes from a coppice run file: forward, backward, fused AdamW.

usage: transformers_train.py RECIPE VARIANT [cpu|cuda]      prints one JSON object

VARIANT: eager, grouped_mm (bf16 autocast of fp32 weights), grouped_mm_bf16 (everything bf16), compiled (that under torch.compile), eager_f32,
grouped_mm_f32.
"""

import json
import os
import pathlib
import resource
import statistics
import sys
import time
import tomllib

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


def main(recipe: pathlib.Path, variant: str, device: str = "cpu") -> None:
    run = tomllib.loads(recipe.read_text())
    m = run["model"]
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=m["vocab_size"], hidden_size=m["dim"], intermediate_size=m["dense_width"], moe_intermediate_size=m["expert_width"],
        num_hidden_layers=m["layers"], num_attention_heads=m["heads"], num_key_value_heads=m["kv_heads"], head_dim=m["head_dim"],
        num_experts=m["experts"], num_experts_per_tok=m["top_k"], norm_topk_prob=True, tie_word_embeddings=False)
    with torch.device(device):
        model = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation("eager" if variant.startswith("eager") else "grouped_mm")
    if variant in ("grouped_mm_bf16", "compiled"):
        model = model.to(torch.bfloat16)
    autocast = variant in ("eager", "grouped_mm")
    step_model = torch.compile(model) if variant == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=run["optimizer"]["lr"], fused=True)
    length, steps = run["data"]["sequence_length"], run["train"]["steps"]
    shape = (steps, run["train"]["batch_tokens"] // length, length)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = []
    for batch in torch.randint(0, m["vocab_size"], shape, generator=torch.Generator().manual_seed(0)).to(device):
        wait()
        start = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            loss = step_model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"tokens_per_s": shape[1] * length / statistics.median(seconds[2:]),
                      "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
