"""A bf16 checkpoint to measure expansions on: a qwen3_moe whose experts hold nearly all of the bytes. Written as fast as the disk takes it.

usage: checkpoint.py DIRECTORY GB     prints the bytes of its weights
"""

import json
import pathlib
import struct
import sys

import numpy

DIM, WIDTH, VOCABULARY, HEADS, KV_HEADS = 2048, 1024, 4096, 16, 4
SHARD_BYTES = 2_000_000_000


def shapes_of(layers: int, experts: int) -> dict[str, list[int]]:
    head = DIM // HEADS
    shapes = {"model.embed_tokens.weight": [VOCABULARY, DIM]}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.q_proj.weight": [DIM, DIM], f"{name}.self_attn.k_proj.weight": [KV_HEADS * head, DIM],
                   f"{name}.self_attn.v_proj.weight": [KV_HEADS * head, DIM], f"{name}.self_attn.o_proj.weight": [DIM, DIM],
                   f"{name}.input_layernorm.weight": [DIM], f"{name}.post_attention_layernorm.weight": [DIM],
                   f"{name}.self_attn.q_norm.weight": [head], f"{name}.self_attn.k_norm.weight": [head],
                   f"{name}.mlp.gate.weight": [experts, DIM]}
        for expert in range(experts):
            prefix = f"{name}.mlp.experts.{expert}"
            shapes |= {f"{prefix}.gate_proj.weight": [WIDTH, DIM], f"{prefix}.down_proj.weight": [DIM, WIDTH],
                       f"{prefix}.up_proj.weight": [WIDTH, DIM]}
    return shapes | {"model.norm.weight": [DIM], "lm_head.weight": [VOCABULARY, DIM]}


def write_shard(path: pathlib.Path, shapes: dict[str, list[int]], values: numpy.ndarray, position: int) -> None:
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 2 * int(numpy.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            count = int(numpy.prod(shape))
            start = position % (len(values) - count)
            file.write(values[start:start + count].data)
            position += 7919 * 4096  # so that no two matrices are the same


def make_checkpoint(directory: pathlib.Path, gigabytes: float) -> int:
    """Writes about `gigabytes` of weights; returns their bytes."""
    expert_bytes = 2 * 3 * DIM * WIDTH
    experts = 32 if gigabytes >= 1 else 4
    layers = max(1, round(gigabytes * 1e9 / (experts * expert_bytes)))
    directory.mkdir(parents=True)
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": DIM, "moe_intermediate_size": WIDTH,
              "intermediate_size": 4 * WIDTH, "decoder_sparse_step": 1, "mlp_only_layers": [], "head_dim": DIM // HEADS,
              "num_hidden_layers": layers, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY,
              "num_experts": experts, "num_experts_per_tok": 2, "norm_topk_prob": True, "attention_bias": False, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
              "rope_theta": 1e6, "hidden_act": "silu", "tie_word_embeddings": False, "router_aux_loss_coef": 0.001, "dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    # The upper halves of floats are bf16. 16 Mi values at one place or another are as good as fresh ones, and fast.
    normal = numpy.random.default_rng(0).standard_normal(1 << 24, dtype=numpy.float32) * numpy.float32(0.02)
    values = numpy.ascontiguousarray(normal.view(numpy.uint16)[1::2])

    shards, size = [{}], 0
    for name, shape in shapes_of(layers, experts).items():
        bytes_ = 2 * int(numpy.prod(shape))
        if shards[-1] and size + bytes_ > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += bytes_
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))] if len(shards) > 1 else ["model.safetensors"]
    for i, (name, shapes) in enumerate(zip(names, shards)):
        write_shard(directory / name, shapes, values, i * 104729)
    if len(shards) > 1:
        weight_map = {tensor: name for name, shapes in zip(names, shards) for tensor in shapes}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(2 * int(numpy.prod(shape)) for shapes in shards for shape in shapes.values())


if __name__ == "__main__":
    print(make_checkpoint(pathlib.Path(sys.argv[1]), float(sys.argv[2])))
