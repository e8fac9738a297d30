"""Grown models in transformers: they load without a complaint, every expert and router row is its parent's, and where the
routing mathematics says that the function is kept, the logits are the same."""

import json
import os
import pathlib
import subprocess

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"

COMMON = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None)
FAMILIES = {
    "mixtral": dict(num_local_experts=6),
    "olmoe": dict(num_experts=6),
    "qwen2_moe": dict(num_experts=6, moe_intermediate_size=24, shared_expert_intermediate_size=40, decoder_sparse_step=2),
    "qwen3_moe": dict(num_experts=6, moe_intermediate_size=24, head_dim=16, mlp_only_layers=[1]),
    "glm4_moe": dict(n_routed_experts=6, moe_intermediate_size=24, head_dim=8, n_shared_experts=1),
}
COUNTS = {"2x": 12, "3x": 18, "1.5x": 9, "7": 7}
EXPERT_ENDINGS = ("gate_proj.weight", "up_proj.weight", "down_proj.weight", "w1.weight", "w2.weight", "w3.weight")


def make_model(directory, family, dtype=torch.float32, top_k=2, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family], "num_experts_per_tok": top_k, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.1)
    model.save_pretrained(directory, max_shard_size="60KB")
    return model


def expand(source, out, *options):
    done = subprocess.run([COPPICE, "expand", source, out, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "coppice.json").read_text())["steps"][-1]["parents"]


def load(directory):
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype="auto")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def read(directory):
    tensors = {}
    for shard in directory.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    return tensors


def source_of(name, parents):
    """The tensor that an expert's tensor of the expanded model must equal."""
    parts = name.split(".")
    if "experts" not in parts or not name.endswith(EXPERT_ENDINGS):
        return name
    at = parts.index("experts") + 1
    parts[at] = str(parents[parts[parts.index("layers") + 1]][int(parts[at])])
    return ".".join(parts)


def is_router(name, parents):
    layer = name.split(".")[2] if name.startswith("model.layers.") else None
    return layer in parents and (name.endswith((".mlp.gate.weight", ".block_sparse_moe.gate.weight", "e_score_correction_bias")))


def logits(model):
    tokens = torch.randint(0, COMMON["vocab_size"], (4, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(tokens).logits.float()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_grown_model_loads_and_holds_its_parents(tmp_path, family, count):
    make_model(tmp_path / "m", family, torch.bfloat16)
    parents = expand(tmp_path / "m", tmp_path / "out", "--experts", count, "--router-init", "copy", "--max-shard-bytes", "100KB")
    assert all(len(of_layer) == COUNTS[count] for of_layer in parents.values())

    before, after = read(tmp_path / "m"), read(tmp_path / "out")
    for name, tensor in after.items():
        if is_router(name, parents):
            layer = name.split(".")[2]
            assert torch.equal(tensor, before[name][parents[layer]]), name
        else:
            assert torch.equal(tensor, before[source_of(name, parents)]), name
    assert {source_of(name, parents) for name in after} == set(before)

    model = load(tmp_path / "out")
    assert torch.isfinite(logits(model)).all()
    model.save_pretrained(tmp_path / "again")  # transformers writes back what we wrote
    saved = read(tmp_path / "again")
    assert saved.keys() == after.keys()
    assert all(torch.equal(saved[name], after[name]) for name in after)


# With K = 1 a sibling takes the whole slot of its parent: exact where gates are renormalised or sigmoids (docs/expand.md).
@pytest.mark.parametrize("count", ["2x", "3x", "7"])
@pytest.mark.parametrize("family", ["mixtral", "glm4_moe"])
def test_top_1_copies_keep_the_function(tmp_path, family, count):
    source = make_model(tmp_path / "m", family, top_k=1)
    expand(tmp_path / "m", tmp_path / "out", "--experts", count, "--router-init", "copy")
    before, after = logits(source), logits(load(tmp_path / "out"))
    assert (after - before).abs().max() <= 2e-6 * before.abs().max()  # another number of rows in one GEMM, another order of summation


@pytest.mark.parametrize("method", ["copy", "copy_noise", "drop_units", "permute_units"])
def test_every_expert_method_gives_a_model_that_runs(tmp_path, method):
    make_model(tmp_path / "m", "qwen3_moe", torch.bfloat16)
    expand(tmp_path / "m", tmp_path / "out", "--expert-init", method)
    assert torch.isfinite(logits(load(tmp_path / "out"))).all()


def test_permuted_units_compute_the_same(tmp_path):
    source = make_model(tmp_path / "m", "mixtral", top_k=1)
    expand(tmp_path / "m", tmp_path / "out", "--expert-init", "permute_units", "--router-init", "copy")
    before, after = logits(source), logits(load(tmp_path / "out"))
    assert (after - before).abs().max() <= 2e-6 * before.abs().max()


def test_chained_growth_loads(tmp_path):
    make_model(tmp_path / "m", "glm4_moe")
    expand(tmp_path / "m", tmp_path / "a", "--experts", "8")
    expand(tmp_path / "a", tmp_path / "b", "--experts", "3x", "--seed", "1")
    assert load(tmp_path / "b").config.n_routed_experts == 24
    assert len(json.loads((tmp_path / "b" / "coppice.json").read_text())["steps"]) == 2
