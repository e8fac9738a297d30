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
LATENT = dict(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=21, n_shared_experts=1, num_key_value_heads=6, q_lora_rank=14,
              kv_lora_rank=10, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=8, first_k_dense_replace=1)
GPT_OSS = dict(num_local_experts=5, num_experts_per_tok=2, head_dim=8, sliding_window=6)
GRANITE = dict(num_local_experts=5, num_experts_per_tok=2, intermediate_size=22)
YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=12)
LONG = dict(rope_type="longrope", short_factor=[1.0, 1.5, 2.0], long_factor=[2.0, 3.0, 5.0])


def rope(**parameters):
    return dict(rope_parameters=dict(rope_theta=500.0) | parameters)


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
    ("llama_mlp_biases", "llama", dict(mlp_bias=True)),
    ("llama_gelu", "llama", dict(hidden_act="gelu_pytorch_tanh")),
    ("mistral", "mistral", dict(head_dim=8, sliding_window=None)),
    ("phi3", "phi3", {}),
    ("gemma", "gemma", dict(head_dim=8)),
    ("gemma_untied", "gemma", dict(head_dim=10, tie_word_embeddings=False, attention_bias=True)),
    ("dots1", "dots1", dict(GLM, n_shared_experts=1, first_k_dense_replace=1, attention_bias=True, routed_scaling_factor=2.5)),
    ("dots1_groups", "dots1", dict(GLM, n_shared_experts=2, norm_topk_prob=True, n_group=3, topk_group=2, num_experts_per_tok=2,
                                   sliding_window=5, max_window_layers=1)),
    ("solar_open", "solar_open", dict(GLM, n_shared_experts=1, attention_bias=True)),
    ("solar_open_groups", "solar_open", dict(GLM, n_shared_experts=2, norm_topk_prob=False, n_group=2,
                                              topk_group=1, num_experts_per_tok=2)),
    # latent attention
    ("deepseek_v3", "deepseek_v3", dict(LATENT, n_group=3, topk_group=2, routed_scaling_factor=2.5)),
    ("deepseek_v3_yarn", "deepseek_v3", dict(LATENT, q_lora_rank=None, attention_bias=True, n_group=1, topk_group=1, norm_topk_prob=False,
                                             v_head_dim=13, **rope(**YARN, mscale=0.7, mscale_all_dim=0.9))),
    ("deepseek_v3_halves", "deepseek_v3", dict(LATENT, rope_interleave=False, attention_bias=True, n_group=2, topk_group=1,
                                               tie_word_embeddings=True, **rope(**YARN, mscale_all_dim=1.0))),
    ("deepseek_v2", "deepseek_v2", dict(LATENT, topk_method="greedy", routed_scaling_factor=1.7)),
    ("deepseek_v2_groups", "deepseek_v2", dict(LATENT, topk_method="group_limited_greedy", n_group=3, topk_group=2, q_lora_rank=None,
                                               attention_bias=True, first_k_dense_replace=0, **rope(**YARN, mscale=0.7, mscale_all_dim=0.7))),
    ("glm4_moe_lite", "glm4_moe_lite", dict(LATENT, first_k_dense_replace=None, routed_scaling_factor=1.8)),
    ("glm4_moe_lite_types", "glm4_moe_lite", dict(LATENT, first_k_dense_replace=None, mlp_layer_types=["sparse", "dense", "sparse"],
                                                  n_group=2, topk_group=1)),
    # stacked experts
    ("gpt_oss", "gpt_oss", GPT_OSS),
    ("gpt_oss_full", "gpt_oss", dict(GPT_OSS, layer_types=["full_attention"] * 3, attention_bias=False, tie_word_embeddings=True,
                                     num_experts_per_tok=5, **rope(rope_type="default"))),
    ("granitemoe", "granitemoe", dict(GRANITE, embedding_multiplier=3.0, attention_multiplier=0.3, residual_multiplier=0.4, logits_scaling=6.0)),
    ("granitemoe_biases", "granitemoe", dict(GRANITE, attention_bias=True, tie_word_embeddings=True)),
    ("granitemoeshared", "granitemoeshared", dict(GRANITE, shared_intermediate_size=19, residual_multiplier=0.7)),
    ("granitemoeshared_none", "granitemoeshared", dict(GRANITE, shared_intermediate_size=0)),
    ("minimax_m2", "minimax_m2", dict(num_local_experts=5, num_experts_per_tok=2, head_dim=8,
                                      **rope(rope_type="default", partial_rotary_factor=0.5))),
    ("minimax_m2_whole", "minimax_m2", dict(num_local_experts=5, num_experts_per_tok=3, head_dim=6)),
    # rotary embeddings: 19 positions
    ("rope_linear", "llama", rope(rope_type="linear", factor=3.0)),
    ("rope_dynamic_short", "llama", rope(rope_type="dynamic", factor=3.0)),
    ("rope_dynamic_long", "llama", dict(max_position_embeddings=16, **rope(rope_type="dynamic", factor=3.0))),
    ("rope_yarn", "llama", rope(**YARN)),
    ("rope_yarn_settings", "qwen3", dict(head_dim=16, **rope(**YARN, beta_fast=8.0, beta_slow=2.0, attention_factor=1.3))),
    ("rope_yarn_whole_dimensions", "llama", dict(head_dim=16, **rope(**YARN, truncate=False))),
    ("rope_llama3", "llama", dict(head_dim=16, **rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                      original_max_position_embeddings=32))),
    ("rope_long", "llama", rope(**LONG, original_max_position_embeddings=8)),
    ("rope_long_short", "llama", rope(**LONG, original_max_position_embeddings=32, factor=4.0)),
    ("rope_phi3", "phi3", dict(original_max_position_embeddings=8, **rope(**LONG))),
    ("rope_partial_yarn", "glm4_moe", dict(GLM, n_shared_experts=1, **rope(**YARN, partial_rotary_factor=0.5))),
    # local attention
    ("window_mistral", "mistral", dict(sliding_window=7)),
    ("window_of_two", "mistral", dict(sliding_window=2)),
    ("window_mixtral", "mixtral", dict(num_local_experts=5, num_experts_per_tok=2, sliding_window=6)),
    ("window_phi3", "phi3", dict(sliding_window=5)),
    ("window_qwen2", "qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    ("window_qwen3_types", "qwen3", dict(use_sliding_window=True, sliding_window=4, head_dim=8,
                                         layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    ("window_qwen2_moe", "qwen2_moe", dict(MOE, shared_expert_intermediate_size=8, use_sliding_window=True, sliding_window=4,
                                           max_window_layers=2)),
    ("window_qwen3_moe", "qwen3_moe", dict(MOE, head_dim=6, use_sliding_window=True, sliding_window=6)),
]
LOGITS, GRADIENTS = 1e-5, 1e-4  # of the largest value; f32 sums in another order give about a tenth of that


def make_model(model_type, settings, seed=0):
    """Weights large enough that attention, norms, biases and the choice of experts matter."""
    config = AutoConfig.for_model(model_type, **{**COMMON, **settings})
    # "eager": torch's grouped GEMM wants sizes that are multiples of 16 bytes.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, experts_implementation="eager").train(False)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "inv_freq" in name or "embed_scale" in name:
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        is_norm = "norm" in name and name.endswith("weight")
        scale = 0.2 if is_norm or name.endswith("bias") else 0.25
        mean = 1.0 if is_norm and model_type != "gemma" else 0.0  # which multiplies by 1 + weight
        tensor.data.copy_(noise * scale + mean)
    return model


def dump(directory, model, tokens, targets, kernel="fast", aux_loss_coef=0.0, form=(), **more):
    program = BUILD / "tests" / "decoder_dump"
    assert program.exists(), f"{program} is not built (make build, or set COPPICE_BUILD)"
    if not (directory / "m").exists():
        model.save_pretrained(directory / "m", max_shard_size="60KB")
    save_file({"tokens": tokens, "targets": targets, **more}, directory / "in.safetensors")
    out = directory / f"{kernel}.safetensors"
    done = subprocess.run([program, directory / "m", directory / "in.safetensors", out, kernel, str(aux_loss_coef), *form],
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
    parameters = dict(model.named_parameters())
    if "_linear.weight" in name or "router.layer" in name:  # granite
        name = name.replace("router.layer", "router")
        name = name.replace("moe.input_linear.weight", "moe.experts.gate_up_proj").replace("moe.output_linear.weight", "moe.experts.down_proj")
        return parameters[name].grad
    name = name.replace("block_sparse_moe", "mlp")
    name = name.replace(".w1.", ".gate_proj.").replace(".w2.", ".down_proj.").replace(".w3.", ".up_proj.")
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
    ("mixtral", dict(num_local_experts=5, num_experts_per_tok=2)), ("glm4_moe", dict(GLM, n_shared_experts=1)), ("qwen3", {}),
    ("qwen3_moe", dict(MOE, hidden_size=64, head_dim=32, norm_topk_prob=True))])
@pytest.mark.parametrize("length", [19, 64])  # with heads of 32, 64 positions run on the attention kernel of our own
def test_packed_documents_are_those_of_transformers(tmp_path, model_type, settings, length):
    """transformers takes position ids that start again for the starts of documents."""
    model = make_model(model_type, settings)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, COMMON["vocab_size"], (3, length + 1), generator=generator)
    tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    starts = torch.zeros_like(tokens)
    for row, begins in zip(starts, [[1, 2, 9, length - 1], [], [17]]):
        for begin in begins:
            row[begin:] = begin
    found = dump(tmp_path, model, tokens, targets, starts=starts)

    logits = model(tokens, position_ids=torch.arange(length) - starts, use_cache=False).logits
    assert_near(found["logits"], logits, LOGITS, "logits")
    assert not torch.allclose(found["logits"], model(tokens, use_cache=False).logits, rtol=1e-3, atol=1e-3)
    token_loss(logits, targets).backward()
    assert_same_gradients(found, model)


@pytest.mark.parametrize("model_type, settings", [
    ("mixtral", dict(num_local_experts=5, num_experts_per_tok=2)), ("olmoe", EXPERTS), ("gpt_oss", GPT_OSS), ("qwen3_moe", dict(MOE, head_dim=6)),
    ("qwen2_moe", dict(MOE, shared_expert_intermediate_size=8, mlp_only_layers=[0])),
    ("minimax_m2", dict(num_local_experts=5, num_experts_per_tok=2, head_dim=8))])
def test_balancing_loss_in_the_form_of_transformers_is_that_of_transformers(tmp_path, model_type, settings):
    model = make_model(model_type, settings)
    for name, tensor in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            tensor.zero_()  # transformers counts the choices of the softmax alone, and not those that are made
    tokens, targets = make_batch()
    found = dump(tmp_path, model, tokens, targets, aux_loss_coef=0.3, form=["transformers"])

    out = model(tokens, output_router_logits=True)
    assert found["aux_loss"].item() == pytest.approx(out.aux_loss.item(), rel=1e-5)
    (token_loss(out.logits, targets) + 0.3 * out.aux_loss).backward()
    assert_same_gradients(found, model)


SIGMOID = [("glm4_moe", dict(GLM, n_shared_experts=1, first_k_dense_replace=1)), ("dots1", dict(GLM, n_shared_experts=1, first_k_dense_replace=0)),
           ("deepseek_v3", dict(LATENT, n_group=2, topk_group=1)), ("minimax_m2", dict(num_local_experts=5, num_experts_per_tok=2, head_dim=8))]
SOFTMAX = [("mixtral", dict(num_local_experts=5, num_experts_per_tok=2)), ("qwen3_moe", dict(MOE, head_dim=6, norm_topk_prob=True)),
           ("gpt_oss", GPT_OSS)]


@pytest.mark.parametrize("is_sigmoid, model_type, settings", [(True, *case) for case in SIGMOID] + [(False, *case) for case in SOFTMAX])
def test_balancing_loss_is_per_layer_of_what_the_router_chose(tmp_path, is_sigmoid, model_type, settings):
    """DeepSeek-V3 (arXiv:2412.19437), equations 17 to 20, over the batch: mean over layers of E * sum f_e * P_e, with scores that sum to 1."""
    model = make_model(model_type, settings)
    tokens, targets = make_batch()
    found = dump(tmp_path, model, tokens, targets, aux_loss_coef=0.3)

    experts = found_experts(model)
    routers = [module for name, module in model.named_modules() if name.endswith((".gate", ".router")) and hasattr(module, "weight")
               and module.weight.shape[0] == experts]
    inputs, chosen = {}, {}
    for router in routers:
        router.register_forward_hook(lambda module, args, out: inputs.__setitem__(module, args[0]))
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_hook(lambda module, args, out, name=name: chosen.__setitem__(name, args[1]))
    logits = model(tokens, use_cache=False).logits
    assert len(routers) == len(chosen) > 1
    losses = []
    for router, index in zip(routers, chosen.values()):
        z = torch.nn.functional.linear(inputs[router].reshape(-1, router.weight.shape[1]), router.weight, getattr(router, "bias", None))
        score = torch.sigmoid(z) if is_sigmoid else torch.softmax(z, -1)
        share = torch.bincount(index.flatten(), minlength=experts) / len(z)
        losses.append(experts * (share * (score / score.sum(-1, keepdim=True)).mean(0)).sum())
    aux = sum(losses) / len(losses)
    assert found["aux_loss"].item() == pytest.approx(aux.item(), rel=1e-5)
    (token_loss(logits, targets) + 0.3 * aux).backward()
    assert_same_gradients(found, model)


def found_experts(model):
    config = model.config
    return next(getattr(config, key) for key in ("n_routed_experts", "num_local_experts", "num_experts") if hasattr(config, key))


@pytest.mark.parametrize("model_type, settings", [("glm4_moe", dict(GLM, n_shared_experts=1)),
                                                  ("qwen2_moe", dict(MOE, shared_expert_intermediate_size=8)),
                                                  ("deepseek_v3", dict(LATENT, n_group=2, topk_group=1)), ("gpt_oss", GPT_OSS)])
def test_recomputation_changes_no_bit(tmp_path, model_type, settings):
    model = make_model(model_type, settings)
    tokens, targets = make_batch()
    kept = dump(tmp_path, model, tokens, targets, "fast", aux_loss_coef=0.1)
    recomputed = dump(tmp_path, model, tokens, targets, "recompute", aux_loss_coef=0.1)
    assert kept.keys() == recomputed.keys()
    for name, tensor in kept.items():
        assert torch.equal(tensor, recomputed[name]), name
