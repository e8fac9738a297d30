"""Training, scoring and evaluation against transformers and torch.optim on the same weights and tokens."""

import json
import os
import pathlib
import subprocess
import sys

import numpy
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from token_files import write_tokens  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"

torch.set_num_threads(1)  # too little work for more

VOCABULARY, LENGTH, WINDOWS = 96, 32, 8
COMMON = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None,
              num_experts_per_tok=2, moe_intermediate_size=24, head_dim=8)
FAMILIES = {
    "glm4_moe": dict(n_routed_experts=6, n_shared_experts=1, first_k_dense_replace=1, use_qk_norm=True),
    "qwen3_moe": dict(num_experts=6, norm_topk_prob=True),
    "deepseek_v3": dict(n_routed_experts=6, n_shared_experts=1, first_k_dense_replace=1, n_group=2, topk_group=1, num_key_value_heads=4,
                        q_lora_rank=20, kv_lora_rank=12, head_dim=4, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=8),
    "gpt_oss": dict(num_local_experts=6, sliding_window=8),
    "granitemoe": dict(num_local_experts=6, embedding_multiplier=2.0, logits_scaling=2.0, residual_multiplier=0.8),
}


def run(*arguments):
    done = subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def new_model(directory, model_type):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**COMMON, **FAMILIES[model_type]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, values in model.state_dict().items():
            if "norm" not in name:
                values.normal_(std=0.08)
    model.save_pretrained(directory)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    model = new_model(directory / "model", request.param)
    ids = numpy.random.default_rng(1).integers(0, VOCABULARY, WINDOWS * LENGTH + 1)
    write_tokens(directory / "tokens", ids)
    windows = torch.tensor(numpy.stack([ids[w * LENGTH:w * LENGTH + LENGTH + 1] for w in range(WINDOWS)]).astype("int64"))
    return directory, model, windows


def loss_of(model, windows):
    logits = model(windows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def experts_of(model, layer):
    """(fc1 [E, ...], fc2 [E, ...]) of a layer; None where it is dense."""
    block = model.model.layers[layer]
    experts = getattr(getattr(block, "mlp", None) or block.block_sparse_moe, "experts", None)
    return None if experts is None else (experts.gate_up_proj, experts.down_proj)


def test_evaluates_to_the_loss_of_transformers(case):
    directory, model, windows = case
    with torch.no_grad():
        expected = loss_of(model, windows).item()
    result = json.loads(run("eval", directory / "model", "--tokens", directory / "tokens", "--sequence-length", LENGTH,
                            "--threads", 1, "--json"))
    assert result["tokens"] == WINDOWS * LENGTH
    assert result["loss"] == pytest.approx(expected, abs=1e-5)


def test_scores_by_the_gradients_of_transformers(case):
    directory, model, windows = case
    run("score", directory / "model", directory / "tokens", "--out", directory / "scores.json", "--batches", 2,
        "--threads", 1, "--batch-tokens", WINDOWS * LENGTH // 2, "--sequence-length", LENGTH)
    metrics = json.loads((directory / "scores.json").read_text())["metrics"]
    model.zero_grad()
    loss_of(model, windows).backward()
    checked = 0
    for layer in range(COMMON["num_hidden_layers"]):
        if experts_of(model, layer) is None:
            continue
        for part, weight in zip(("fc1", "fc2"), experts_of(model, layer)):
            w, g = weight.detach().double().flatten(1), weight.grad.double().flatten(1)
            expected = {"gradient_squared": g.square().sum(1), "weight_norm": w.norm(dim=1),
                        "weight_grad_product": w.norm(dim=1) * g.norm(dim=1)}
            for name, values in expected.items():
                assert metrics[name][part]["sum"][str(layer)] == pytest.approx(values.tolist(), rel=2e-4), (name, part)
            tolerance = 1e-4 * (w.norm(dim=1) * g.norm(dim=1)).max().item()
            assert metrics["taylor"][part]["sum"][str(layer)] == pytest.approx((w * g).sum(1).abs().tolist(), abs=tolerance)
            checked += 1
    assert checked >= 4


def test_trains_along_the_losses_of_torch_adamw(case):
    """Each step takes the whole file, so that the order of its windows does not matter."""
    directory, _, windows = case
    steps, lr, clip = 8, 2e-3, 0.5
    run("train", "--model.path", directory / "model", "--data.train", directory / "tokens", "--data.sequence_length", LENGTH,
        "--train.threads", 1, "--train.out", directory / "run", "--train.steps", steps,
        "--train.batch_tokens", WINDOWS * LENGTH,
        "--train.micro_batch", 3, "--train.dtype", "f32", "--optimizer.lr", lr, "--optimizer.clip", clip,
        "--optimizer.weight_decay", 0.1, "--schedule.kind", "constant", "--schedule.warmup", 0, "--balance.kind", "none")
    lines = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "loss" in line]

    model = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32)
    is_matrix = lambda name, p: p.dim() > 1 and not name.endswith("bias")  # biases of experts are stacked
    matrices = [p for name, p in model.named_parameters() if is_matrix(name, p)]
    vectors = [p for name, p in model.named_parameters() if not is_matrix(name, p)]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                                  lr=lr, betas=(0.9, 0.95), eps=1e-8)
    for line in measured:
        optimizer.zero_grad()
        loss = loss_of(model, windows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        assert line["loss"] == pytest.approx(loss.item(), abs=2e-4), line["step"]
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=5e-3), line["step"]
    assert len(measured) == steps and measured[-1]["loss"] < measured[0]["loss"]

    trained = AutoModelForCausalLM.from_pretrained(directory / "run" / "checkpoints" / f"step-{steps:08d}",
                                                   dtype=torch.float32)
    with torch.no_grad():
        assert loss_of(trained, windows).item() == pytest.approx(loss_of(model, windows).item(), abs=5e-4)


def test_bf16_checkpoints_load_in_transformers(case):
    directory, _, windows = case
    run("train", "--model.path", directory / "model", "--data.train", directory / "tokens", "--data.sequence_length", LENGTH,
        "--train.threads", 1, "--train.out", directory / "bf16", "--train.steps", 3,
        "--train.batch_tokens", WINDOWS * LENGTH,
        "--schedule.warmup", 0, "--optimizer.lr", 1e-3)
    checkpoint = directory / "bf16" / "checkpoints" / "step-00000003"
    model, info = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.dtype == torch.bfloat16
    if "glm" in model.config.model_type:
        bias = model.model.layers[1].mlp.gate.e_score_correction_bias
        assert bias.dtype == torch.float32 and bias.abs().max() > 0
    with torch.no_grad():
        expected = loss_of(model.float(), windows).item()
    result = json.loads(run("eval", checkpoint, "--tokens", directory / "tokens", "--sequence-length", LENGTH,
                            "--threads", 1, "--json"))
    assert result["loss"] == pytest.approx(expected, abs=1e-5)


NEW = {"mixtral": {}, "deepseek_v2": dict(kv_heads=4, shared_width=24), "deepseek_v3": dict(kv_heads=4, shared_width=24, first_dense_layers=1),
       "glm4_moe_lite": dict(kv_heads=4, first_dense_layers=1), "gpt_oss": {}, "granitemoe": {}, "granitemoeshared": dict(shared_width=16),
       "minimax_m2": {}, "mistral": {}, "phi3": {}, "gemma": {}, "dots1": dict(shared_width=24), "solar_open": dict(shared_width=24)}


@pytest.mark.parametrize("family", NEW)
def test_a_new_model_trains_resumes_and_loads_in_transformers(tmp_path, family):
    ids = numpy.random.default_rng(3).integers(0, VOCABULARY, WINDOWS * LENGTH + 1)
    write_tokens(tmp_path / "tokens", ids)
    sizes = dict(family=family, vocab_size=VOCABULARY, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4, expert_width=24, dense_width=40,
                 shared_width=0, first_dense_layers=0) | NEW[family]
    arguments = [*(f"--model.{key}={value}" for key, value in sizes.items()), "--data.train", tmp_path / "tokens", "--data.sequence_length", LENGTH,
                 "--train.threads", 1, "--train.dtype", "f32", "--train.steps", 4, "--train.batch_tokens", 4 * LENGTH, "--schedule.warmup", 0]
    run("train", *arguments, "--train.out", tmp_path / "whole")
    run("train", *arguments, "--train.out", tmp_path / "halves", "--train.stop_at", 2)
    run("train", *arguments, "--train.out", tmp_path / "halves", "--train.resume")
    whole, halves = (tmp_path / name / "checkpoints" / "step-00000004" for name in ("whole", "halves"))
    for file in ("model.safetensors", "trainer/optimizer-00001-of-00001.safetensors"):
        assert (whole / file).read_bytes() == (halves / file).read_bytes(), file

    model, info = AutoModelForCausalLM.from_pretrained(whole, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    windows = torch.tensor(numpy.stack([ids[w * LENGTH:w * LENGTH + LENGTH + 1] for w in range(WINDOWS)]).astype("int64"))
    with torch.no_grad():
        expected = loss_of(model, windows).item()
    result = json.loads(run("eval", whole, "--tokens", tmp_path / "tokens", "--sequence-length", LENGTH, "--threads", 1, "--json"))
    assert result["loss"] == pytest.approx(expected, abs=1e-5)


SIGMOID = dict(n_routed_experts=6, n_shared_experts=1, first_k_dense_replace=1)
LATENT = FAMILIES["deepseek_v3"]


@pytest.mark.parametrize("model_type, settings", [
    ("glm4_moe", SIGMOID), ("dots1", SIGMOID), ("solar_open", SIGMOID), ("deepseek_v3", LATENT), ("minimax_m2", dict(num_local_experts=6))])
def test_balances_by_a_bias_only_where_transformers_keeps_it_in_f32(tmp_path, model_type, settings):
    """A bias that is rounded to bf16 when the model is loaded chooses other experts than it did in training."""
    config = AutoConfig.for_model(model_type, **{**COMMON, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    dtypes = {values.dtype for name, values in loaded.state_dict().items() if name.endswith("e_score_correction_bias")}
    assert len(dtypes) == 1
    run("train", "--model.path", tmp_path / "model", "--data.random", "--data.sequence_length", 16, "--train.batch_tokens", 32,
        "--train.steps", 1, "--train.threads", 1, "--train.out", tmp_path / "run")
    step = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert ("aux" in step) == (dtypes == {torch.bfloat16})
