"""Checkpoints of known shapes without weights: the headers are whole, and the values are holes in sparse files. They take no space on the disk, so `coppice plan` and
`inspect` can be asked about models of any size.

usage: shapes.py SHAPE DIRECTORY     SHAPE: paper (arXiv:2604.19835, 32 experts), qwen3-30b (Qwen3-30B-A3B, 128 experts)
"""

import json
import math
import pathlib
import struct
import sys

# The paper says: 20 layers, every other one with experts, 2048 wide, experts 3072 wide, top-2, 200704 ids, 7 B parameters. Not said, and chosen so that the sum is right:
# dense layers as wide as the two experts of a token, 16 heads with 4 for keys and values, one matrix for embedding and head.
SHAPES = {
    "paper": dict(hidden_size=2048, moe_intermediate_size=3072, intermediate_size=6144, num_hidden_layers=20, decoder_sparse_step=2, num_attention_heads=16,
                  num_key_value_heads=4, head_dim=128, vocab_size=200704, num_experts=32, num_experts_per_tok=2, tie_word_embeddings=True, max_position_embeddings=8192),
    "qwen3-30b": dict(hidden_size=2048, moe_intermediate_size=768, intermediate_size=6144, num_hidden_layers=48, decoder_sparse_step=1, num_attention_heads=32,
                      num_key_value_heads=4, head_dim=128, vocab_size=151936, num_experts=128, num_experts_per_tok=8, tie_word_embeddings=False,
                      max_position_embeddings=40960),
}


def tensors(c):
    """(name, shape) of every tensor of a qwen3_moe."""
    dim, queries, keys = c["hidden_size"], c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    yield "model.embed_tokens.weight", [c["vocab_size"], dim]
    for layer in range(c["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        yield f"{name}.input_layernorm.weight", [dim]
        yield f"{name}.post_attention_layernorm.weight", [dim]
        yield f"{name}.self_attn.q_norm.weight", [c["head_dim"]]
        yield f"{name}.self_attn.k_norm.weight", [c["head_dim"]]
        for part, shape in (("q", [queries, dim]), ("k", [keys, dim]), ("v", [keys, dim]), ("o", [dim, queries])):
            yield f"{name}.self_attn.{part}_proj.weight", shape
        has_experts = (layer + 1) % c["decoder_sparse_step"] == 0
        if has_experts:
            yield f"{name}.mlp.gate.weight", [c["num_experts"], dim]
        width = c["moe_intermediate_size"] if has_experts else c["intermediate_size"]
        for prefix in [f"{name}.mlp.experts.{e}" for e in range(c["num_experts"])] if has_experts else [f"{name}.mlp"]:
            yield f"{prefix}.gate_proj.weight", [width, dim]
            yield f"{prefix}.up_proj.weight", [width, dim]
            yield f"{prefix}.down_proj.weight", [dim, width]
    yield "model.norm.weight", [dim]
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", [c["vocab_size"], dim]


def make_shape(shape: str, directory: pathlib.Path) -> None:
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "mlp_only_layers": [], "norm_topk_prob": True, "attention_bias": False,
              "rms_norm_eps": 1e-06, "rope_theta": 1e6, "hidden_act": "silu", "router_aux_loss_coef": 0.001, "dtype": "bfloat16", **SHAPES[shape]}
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, dims in tensors(config):
        size = 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(__doc__)
    make_shape(sys.argv[1], pathlib.Path(sys.argv[2]))
