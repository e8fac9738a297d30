"""Families against transformers: it writes what we read, and reads what we write."""

import json
import os
import pathlib
import subprocess

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
COPPICE = BUILD / "coppice"
GENERATE = BUILD / "tests" / "families_generate"

COMMON = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None)
EXPERTS = dict(num_experts=6, num_experts_per_tok=2)
MOE = dict(EXPERTS, moe_intermediate_size=24)
GLM = dict(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=8)
LATENT = dict(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1, num_key_value_heads=4, q_lora_rank=20,
              kv_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=8, n_group=3, topk_group=2)
LOCAL = dict(num_local_experts=6, num_experts_per_tok=2)

# (name, model_type, configuration): every switch of a family's table is on in one case and off in another.
SAVED = [
    ("mixtral", "mixtral", dict(num_local_experts=6, num_experts_per_tok=2)),
    ("mixtral_head_dim", "mixtral", dict(num_local_experts=6, num_experts_per_tok=2, head_dim=16, tie_word_embeddings=True)),
    ("olmoe", "olmoe", EXPERTS),
    ("olmoe_biases", "olmoe", dict(EXPERTS, attention_bias=True, clip_qkv=8.0, norm_topk_prob=True)),
    ("qwen2_moe", "qwen2_moe", dict(MOE, shared_expert_intermediate_size=40)),
    ("qwen2_moe_steps", "qwen2_moe", dict(MOE, shared_expert_intermediate_size=0, decoder_sparse_step=2, qkv_bias=False)),
    ("qwen3_moe", "qwen3_moe", dict(MOE, head_dim=16, norm_topk_prob=True)),
    ("qwen3_moe_dense_layer", "qwen3_moe", dict(MOE, mlp_only_layers=[1], attention_bias=True, tie_word_embeddings=True)),
    ("glm4_moe", "glm4_moe", dict(GLM, n_shared_experts=2, use_qk_norm=True)),
    ("glm4_moe_groups", "glm4_moe", dict(GLM, n_shared_experts=0, first_k_dense_replace=0, n_group=3, topk_group=2,
                                         routed_scaling_factor=2.5, attention_bias=True)),
    ("llama", "llama", {}),
    ("llama_biases", "llama", dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=16)),
    ("mistral", "mistral", dict(sliding_window=None)),
    ("qwen2", "qwen2", {}),
    ("qwen3", "qwen3", dict(tie_word_embeddings=True)),
    ("qwen3_biases", "qwen3", dict(attention_bias=True, head_dim=8)),
    ("mistral", "mistral", dict(sliding_window=8)),
    ("phi3", "phi3", dict(tie_word_embeddings=True)),
    ("gemma", "gemma", dict(head_dim=16)),
    ("dots1", "dots1", dict(GLM, n_shared_experts=1, first_k_dense_replace=1, attention_bias=True)),
    ("solar_open", "solar_open", dict(GLM, n_shared_experts=2, attention_bias=True)),
    ("deepseek_v2", "deepseek_v2", dict(LATENT, topk_method="group_limited_greedy", q_lora_rank=None)),
    ("deepseek_v3", "deepseek_v3", dict(LATENT, first_k_dense_replace=1)),
    ("deepseek_v3_biases", "deepseek_v3", dict(LATENT, first_k_dense_replace=0, attention_bias=True, tie_word_embeddings=True, n_shared_experts=2)),
    ("glm4_moe_lite", "glm4_moe_lite", dict(LATENT, mlp_layer_types=["dense", "sparse", "sparse"])),
    ("gpt_oss", "gpt_oss", dict(LOCAL, head_dim=8)),
    ("gpt_oss_no_biases", "gpt_oss", dict(LOCAL, head_dim=16, attention_bias=False, tie_word_embeddings=True)),
    ("granitemoe", "granitemoe", LOCAL),
    ("granitemoeshared", "granitemoeshared", dict(LOCAL, shared_intermediate_size=40, attention_bias=True)),
    ("granitemoeshared_none", "granitemoeshared", dict(LOCAL, shared_intermediate_size=0)),
    ("minimax_m2", "minimax_m2", dict(LOCAL, head_dim=16)),
]

# (name, family, sizes)
GENERATED = [
    ("mixtral", "mixtral", {}),
    ("olmoe", "olmoe", dict(renormalise=0)),
    ("qwen2_moe", "qwen2_moe", dict(shared_width=48, first_dense_layers=1)),
    ("qwen2_moe_no_shared", "qwen2_moe", dict(renormalise=0)),
    ("qwen3_moe", "qwen3_moe", dict(first_dense_layers=1, head_dim=32)),
    ("glm4_moe", "glm4_moe", dict(shared_width=64, first_dense_layers=1)),
    ("glm4_moe_no_shared", "glm4_moe", dict(tied=1, renormalise=0)),
    ("llama", "llama", dict(tied=1)),
    ("qwen2", "qwen2", {}),
    ("qwen3", "qwen3", dict(head_dim=32)),
    ("mistral", "mistral", {}),
    ("phi3", "phi3", {}),
    ("gemma", "gemma", dict(tied=1)),
    ("dots1", "dots1", dict(shared_width=32, first_dense_layers=1)),
    ("solar_open", "solar_open", dict(shared_width=32)),
    ("deepseek_v2", "deepseek_v2", dict(num_kv_heads=4, shared_width=32, first_dense_layers=1)),
    ("deepseek_v3", "deepseek_v3", dict(num_kv_heads=4, shared_width=64, first_dense_layers=1)),
    ("glm4_moe_lite", "glm4_moe_lite", dict(num_kv_heads=4, shared_width=32, first_dense_layers=1)),
    ("gpt_oss", "gpt_oss", {}),
    ("granitemoe", "granitemoe", dict(tied=1)),
    ("granitemoeshared", "granitemoeshared", dict(shared_width=48)),
    ("minimax_m2", "minimax_m2", {}),
]
DENSE = ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma")
LATENT_FAMILIES = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")
THETA = dict(mixtral=1e6, solar_open=1e6, gpt_oss=150000.0, minimax_m2=5e6)


def run(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def inspect(model):
    return json.loads(run(COPPICE, "inspect", model, "--json"))


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


def feed_forward(layer):
    return layer.block_sparse_moe if hasattr(layer, "block_sparse_moe") else layer.mlp


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name, model_type, settings", SAVED, ids=[case[0] for case in SAVED])
def test_inspect_reads_what_transformers_saved(tmp_path, name, model_type, settings, dtype):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**COMMON, **settings}), dtype=dtype)
    model.save_pretrained(tmp_path / "m", max_shard_size="40KB")
    seen = inspect(tmp_path / "m")

    assert seen["model_type"] == model_type
    assert seen["parameters"]["total"] == num_parameters(model)
    assert sum(v for k, v in seen["parameters"].items() if k not in ("total", "active")) == num_parameters(model)
    config = model.config
    assert seen["layers"] == config.num_hidden_layers
    assert seen["max_positions"] == config.max_position_embeddings
    blocks = [feed_forward(layer) for layer in model.model.layers]
    assert seen["moe_layers"] == sum(hasattr(block, "experts") for block in blocks)
    if "num_experts_per_tok" in settings:
        assert (seen["experts"], seen["top_k"]) == (6, 2)
        experts = sum(num_parameters(block.experts) for block in blocks if hasattr(block, "experts"))
        assert seen["parameters"]["experts"] == experts
        assert seen["parameters"]["active"] == num_parameters(model) - experts + experts * 2 // 6
    else:
        assert seen["experts"] == 0
    attention = model.model.layers[0].self_attn
    assert seen["head_dim"] == (attention.qk_head_dim if model_type in LATENT_FAMILIES else attention.head_dim)
    assert seen["unsupported_in_training"] == []


@pytest.mark.parametrize("dtype, name_of_dtype", [(torch.float32, "F32"), (torch.bfloat16, "BF16")])
@pytest.mark.parametrize("name, family, sizes", GENERATED, ids=[case[0] for case in GENERATED])
def test_transformers_loads_what_we_generate(tmp_path, name, family, sizes, dtype, name_of_dtype):
    run(GENERATE, tmp_path / "m", family, name_of_dtype, *(f"{k}={v}" for k, v in sizes.items()))
    assert (tmp_path / "m" / "model.safetensors.index.json").exists()
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[kind], (kind, info[kind])
    assert model.dtype == dtype
    assert inspect(tmp_path / "m")["parameters"]["total"] == num_parameters(model)

    config = model.config
    attention = model.model.layers[0].self_attn
    assert (attention.qk_head_dim if family in LATENT_FAMILIES else attention.head_dim) == sizes.get("head_dim", 16)
    assert config.rope_parameters["rope_theta"] == THETA.get(family, 1e4)
    assert config.rope_parameters["rope_type"] == "default"
    assert config.tie_word_embeddings == bool(sizes.get("tied", 0))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)
    for key in ("n_routed_experts", "num_local_experts", "num_experts"):
        if hasattr(config, key):
            assert getattr(config, key) == 4
    if hasattr(config, "norm_topk_prob") and family != "deepseek_v2":  # which does not look at it
        assert config.norm_topk_prob == bool(sizes.get("renormalise", 1))
    if family == "glm4_moe":
        assert config.rope_parameters["partial_rotary_factor"] == 0.5
        assert config.use_qk_norm and config.n_shared_experts == sizes.get("shared_width", 0) // 32
        for layer in model.model.layers[sizes.get("first_dense_layers", 0):]:
            assert layer.mlp.gate.e_score_correction_bias.dtype == torch.float32
    blocks = [hasattr(feed_forward(layer), "experts") for layer in model.model.layers]
    dense = 2 if family in DENSE else sizes.get("first_dense_layers", 0)
    assert blocks == [layer >= dense for layer in range(2)]

    logits = model(torch.arange(24).reshape(2, 12)).logits
    assert torch.isfinite(logits).all() and logits.float().std() > 0


def test_inspect_prints_a_table_and_norms(tmp_path):
    run(GENERATE, tmp_path / "m", "mixtral", "F32")
    text = run(COPPICE, "inspect", tmp_path / "m", "--experts")
    for part in ("mixtral", "4 per layer, 2 per token", "softmax over all experts, then the top 2, gates renormalised", "F32"):
        assert part in text
    norms = json.loads(run(COPPICE, "inspect", tmp_path / "m", "--experts", "--json"))["expert_norms"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    for layer, block in enumerate(model.model.layers):
        for expert, seen in enumerate(norms[str(layer)]):
            gate, up = block.mlp.experts.gate_up_proj[expert].chunk(2)
            tensors = dict(gate=gate, up=up, down=block.mlp.experts.down_proj[expert], router=block.mlp.gate.weight[expert])
            for key, tensor in tensors.items():
                assert seen[key] == pytest.approx(tensor.norm().item(), rel=1e-5)
