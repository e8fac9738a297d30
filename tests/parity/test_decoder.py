"""The decoder against transformers: logits and the gradient of every parameter, in f32, for every family."""

import os
import pathlib
import re
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))

# Odd sizes on purpose: nothing is a multiple of a vector, head dimension is not model dimension / heads.
COMMON = dict(vocab_size=83, hidden_size=36, intermediate_size=52, num_hidden_layers=3, num_attention_heads=6,
              num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None)
EXPERTS = dict(num_experts=5, num_experts_per_tok=2)
MOE = dict(EXPERTS, moe_intermediate_size=21)
GLM = dict(n_routed_experts=6, num_experts_per_tok=3, moe_intermediate_size=21, head_dim=8)

# (name, model_type, configuration): every switch that changes the function is on in one case and off in another.
CASES = [
    ("mixtral", "mixtral", dict(num_local_experts=5, num_experts_per_tok=2)),
    ("mixtral_one_expert", "mixtral", dict(num_local_experts=4, num_experts_per_tok=1, head_dim=8, tie_word_embeddings=True)),
    ("olmoe", "olmoe", EXPERTS),
    ("olmoe_biases_clip", "olmoe", dict(EXPERTS, attention_bias=True, clip_qkv=0.4, norm_topk_prob=True)),
    ("qwen2_moe", "qwen2_moe", dict(MOE, shared_expert_intermediate_size=40)),
    ("qwen2_moe_steps", "qwen2_moe", dict(MOE, shared_expert_intermediate_size=17, norm_topk_prob=True, decoder_sparse_step=2,
                                          qkv_bias=False)),
    ("qwen3_moe", "qwen3_moe", dict(MOE, head_dim=10, norm_topk_prob=True)),
    ("qwen3_moe_dense_layer", "qwen3_moe", dict(MOE, mlp_only_layers=[1], attention_bias=True, tie_word_embeddings=True,
                                                head_dim=6, num_experts_per_tok=5)),
    ("glm4_moe", "glm4_moe", dict(GLM, n_shared_experts=2, use_qk_norm=True)),
    ("glm4_moe_groups", "glm4_moe", dict(GLM, n_shared_experts=1, first_k_dense_replace=0, n_group=2, topk_group=1,
                                         routed_scaling_factor=2.5, attention_bias=True, num_experts_per_tok=2)),
    ("glm4_moe_plain", "glm4_moe", dict(GLM, n_shared_experts=0, first_k_dense_replace=2, norm_topk_prob=False, n_group=3,
                                        topk_group=2, partial_rotary_factor=1.0, tie_word_embeddings=True)),
    ("llama", "llama", dict(rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, rms_norm_eps=1e-4)),
    ("llama_biases", "llama", dict(attention_bias=True, tie_word_embeddings=True, head_dim=10)),
    ("mistral", "mistral", dict(sliding_window=None)),
    ("qwen2", "qwen2", {}),
    ("qwen3", "qwen3", dict(tie_word_embeddings=True, head_dim=6)),
    ("qwen3_biases", "qwen3", dict(attention_bias=True, head_dim=8)),
]
LOGITS, GRADIENTS = 1e-5, 1e-4  # of the largest value; f32 sums in another order give about a tenth of that


def make_model(model_type, settings, seed=0):
    """Weights large enough that attention, norms, biases and the choice of experts matter."""
    config = AutoConfig.for_model(model_type, **{**COMMON, **settings})
    # "eager": torch's grouped GEMM wants sizes that are multiples of 16 bytes.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, experts_implementation="eager").train(False)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "inv_freq" in name:
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        is_norm = "norm" in name and name.endswith("weight")
        scale = 0.2 if is_norm or name.endswith("bias") else 0.25
        tensor.data.copy_(noise * scale + (1.0 if is_norm else 0.0))
    return model


def dump(directory, model, tokens, targets, kernel="fast", aux_loss_coef=0.0):
    program = BUILD / "tests" / "decoder_dump"
    assert program.exists(), f"{program} is not built (make build, or set COPPICE_BUILD)"
    if not (directory / "m").exists():
        model.save_pretrained(directory / "m", max_shard_size="60KB")
    save_file({"tokens": tokens, "targets": targets}, directory / "in.safetensors")
    out = directory / f"{kernel}.safetensors"
    done = subprocess.run([program, directory / "m", directory / "in.safetensors", out, kernel, str(aux_loss_coef)],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return load_file(out)


def make_batch():
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, COMMON["vocab_size"], (3, 20), generator=generator)
    tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    targets[1, 4:9] = -1  # as padding: does not count
    return tokens, targets


def expected_gradient(model, name):
    """The gradient of the tensor called `name` on disk, out of transformers' fused experts."""
    name = name.replace("block_sparse_moe", "mlp")
    name = name.replace(".w1.", ".gate_proj.").replace(".w2.", ".down_proj.").replace(".w3.", ".up_proj.")
    parameters = dict(model.named_parameters())
    expert = re.fullmatch(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight", name)
    if not expert:
        return parameters[name].grad
    stem, index, part = expert[1], int(expert[2]), expert[3]
    if part == "down":
        return parameters[f"{stem}.down_proj"].grad[index]
    gate, up = parameters[f"{stem}.gate_up_proj"].grad[index].chunk(2)
    return gate if part == "gate" else up


def token_loss(logits, targets):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def assert_near(found, wanted, tolerance, what, noise=0.0):
    scale = wanted.abs().max().item()
    error = (found - wanted).abs().max().item()
    assert error <= tolerance * scale + noise, f"{what}: off by {error:.2e} at a scale of {scale:.2e}"


def assert_same_gradients(found, model):
    names = [key.removeprefix("grad.") for key in found if key.startswith("grad.")]
    assert sum(found[f"grad.{name}"].numel() for name in names) == sum(p.numel() for p in model.parameters())
    # Some gradients are zero but for rounding: that of a router whose one gate is renormalised to 1, that of key biases.
    noise = 1e-7 * max(p.grad.abs().max().item() for p in model.parameters() if p.grad.numel())
    for name in names:
        assert_near(found[f"grad.{name}"], expected_gradient(model, name), GRADIENTS, name, noise)


@pytest.mark.parametrize("kernel", ["fast", "reference"])
@pytest.mark.parametrize("name, model_type, settings", CASES, ids=[case[0] for case in CASES])
def test_logits_and_gradients_are_those_of_transformers(tmp_path, name, model_type, settings, kernel):
    model = make_model(model_type, settings)
    tokens, targets = make_batch()
    found = dump(tmp_path, model, tokens, targets, kernel)

    logits = model(tokens).logits
    assert_near(found["logits"], logits, LOGITS, "logits")
    loss = token_loss(logits, targets)
    assert abs(found["loss"].item() - loss.item()) <= 1e-5 * loss.item()
    loss.backward()
    assert_same_gradients(found, model)


@pytest.mark.parametrize("model_type, settings", [
    ("mixtral", dict(num_local_experts=5, num_experts_per_tok=2)), ("olmoe", EXPERTS), ("qwen3_moe", dict(MOE, head_dim=6)),
    ("qwen2_moe", dict(MOE, shared_expert_intermediate_size=8, mlp_only_layers=[0]))])
def test_balancing_loss_over_several_layers_is_that_of_transformers(tmp_path, model_type, settings):
    model = make_model(model_type, settings)
    tokens, targets = make_batch()
    found = dump(tmp_path, model, tokens, targets, aux_loss_coef=0.3)

    out = model(tokens, output_router_logits=True)
    assert found["aux_loss"].item() == pytest.approx(out.aux_loss.item(), rel=1e-5)
    (token_loss(out.logits, targets) + 0.3 * out.aux_loss).backward()
    assert_same_gradients(found, model)


@pytest.mark.parametrize("model_type, settings", [("glm4_moe", dict(GLM, n_shared_experts=1)),
                                                  ("qwen2_moe", dict(MOE, shared_expert_intermediate_size=8))])
def test_recomputation_changes_no_bit(tmp_path, model_type, settings):
    model = make_model(model_type, settings)
    tokens, targets = make_batch()
    kept = dump(tmp_path, model, tokens, targets, "fast", aux_loss_coef=0.1)
    recomputed = dump(tmp_path, model, tokens, targets, "recompute", aux_loss_coef=0.1)
    assert kept.keys() == recomputed.keys()
    for name, tensor in kept.items():
        assert torch.equal(tensor, recomputed[name]), name
