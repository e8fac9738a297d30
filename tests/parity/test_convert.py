"""Dense models converted to Mixtures of Experts, in transformers: they load without a complaint, and where the mathematics says that the
function is kept the logits are the dense model's."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from token_files import write_tokens  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"

COMMON = dict(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None, head_dim=8)
DENSE = {"llama": {}, "mistral": dict(sliding_window=None), "qwen2": {}, "qwen3": {}, "gemma": {}}
MOE = ["mixtral", "granitemoe", "qwen2_moe", "qwen3_moe", "glm4_moe"]
LOSSY = [("llama", "qwen3_moe"), ("mistral", "qwen3_moe"), ("gemma", "qwen3_moe"), ("qwen2", "qwen3_moe"), ("qwen2", "mixtral"),
         ("qwen3", "mixtral"), ("qwen3", "granitemoe"), ("qwen3", "qwen2_moe")]
WHOLE = [pair for pair in itertools.product(DENSE, MOE) if pair not in LOSSY]
TOLERANCE = 1e-5  # of the largest logit, in fp32: another order of summation


def pairs(rows):
    """Arguments of a test for each of the rows, named."""
    return "dense, moe", [pytest.param(*row, id="-to-".join(row)) for row in rows]


def make_dense(directory, family, seed=0, dtype=torch.float32, **settings):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**COMMON, **DENSE[family], **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # logits that depend on everything
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=0.15)
    model.save_pretrained(directory, max_shard_size="60KB")
    return model


def coppice(*arguments):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def convert(*arguments):
    done = coppice("convert", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    out = pathlib.Path(told["out"])
    parents = [a for a in arguments if isinstance(a, pathlib.Path) and a != out and a.is_dir()]
    checked = coppice("verify", *parents, out)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    return told


def load(directory):
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype="auto", attn_implementation="eager")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def logits(model, length=33):
    tokens = torch.randint(0, COMMON["vocab_size"], (4, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(tokens).logits.float()


def difference(before, after):
    return ((after - before).abs().max() / before.abs().max()).item()


def read(directory):
    tensors = {}
    for shard in directory.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    return tensors


# Every pair of families, whole.

@pytest.mark.parametrize(*pairs(WHOLE))
def test_a_pair_that_carries_all_keeps_the_function(tmp_path, dense, moe):
    source = make_dense(tmp_path / "m", dense)
    routing = ["--routing", "topk_softmax"] if moe in ("qwen2_moe", "qwen3_moe") else []
    told = convert(tmp_path / "m", tmp_path / "out", "--to", moe, "--granularity", 2, "--experts", 8, "--top-k", 4, "--scale", "down", *routing)
    assert told["exact"] and told["losses"] == []
    model = load(tmp_path / "out")
    assert difference(logits(source), logits(model)) < TOLERANCE
    model.save_pretrained(tmp_path / "again")  # transformers writes back what we wrote
    saved, written = read(tmp_path / "again"), read(tmp_path / "out")
    assert saved.keys() == written.keys()
    assert all(torch.equal(saved[name], written[name]) for name in written)


def test_the_list_of_pairs_is_that_of_the_code():
    rows = json.loads(coppice("list", "conversions", "--json").stdout)["conversions"]
    assert {(row["from"], row["to"]) for row in rows} == set(itertools.product(DENSE, MOE))
    assert {(row["from"], row["to"]) for row in rows if row["losses"]} == set(LOSSY)


@pytest.mark.parametrize(*pairs(LOSSY))
def test_a_pair_that_would_lose_something_is_refused_unless_lossy(tmp_path, dense, moe):
    make_dense(tmp_path / "m", dense)
    done = coppice("convert", tmp_path / "m", tmp_path / "out", "--to", moe)
    assert done.returncode == 3 and "--lossy" in done.stderr and "'model.layers.0.self_attn." in done.stderr
    assert not (tmp_path / "out").exists()
    told = convert(tmp_path / "m", tmp_path / "out", "--to", moe, "--lossy")
    assert not told["exact"] and told["losses"]
    assert torch.isfinite(logits(load(tmp_path / "out"))).all()


# Granularity: G slices, K a multiple of G.

@pytest.mark.parametrize("granularity, top_k", [(1, 1), (1, 2), (1, 5), (2, 2), (2, 4), (4, 4), (8, 8), (4, 8)])
@pytest.mark.parametrize(*pairs([("llama", "granitemoe"), ("mistral", "mixtral"), ("qwen3", "qwen3_moe"), ("qwen3", "glm4_moe")]))
def test_gates_that_add_up_to_1_keep_the_function(tmp_path, dense, moe, granularity, top_k):
    source = make_dense(tmp_path / "m", dense)
    routing = ["--routing", "topk_softmax"] if moe == "qwen3_moe" else []
    told = convert(tmp_path / "m", tmp_path / "out", "--to", moe, "--experts", 8, "--granularity", granularity, "--top-k", top_k, "--scale", "down", *routing)
    assert told["exact"]
    assert told["plan"]["scale"] == {"gate": 1.0, "up": 1.0, "down": float(granularity)}
    assert difference(logits(source), logits(load(tmp_path / "out"))) < TOLERANCE


def test_the_cube_root_is_exact_for_relu_and_not_for_silu(tmp_path):
    settings = ["--to", "granitemoe", "--experts", 8, "--granularity", 4, "--top-k", 4]  # --scale cbrt is the default
    for activation, exact in [("relu", True), ("silu", False)]:
        source = make_dense(tmp_path / activation, "llama", hidden_act=activation)
        told = convert(tmp_path / activation, tmp_path / f"{activation}-out", *settings)
        away = difference(logits(source), logits(load(tmp_path / f"{activation}-out")))
        assert told["exact"] is exact
        assert away < TOLERANCE if exact else away > 1e-3


def test_what_is_said_not_to_be_exact_is_not(tmp_path):
    source = make_dense(tmp_path / "m", "qwen3")
    before = logits(source)
    for i, options in enumerate([["--scale", "none", "--routing", "topk_softmax"], ["--scale", "down"], ["--no-virtual-group", "--scale", "down", "--routing", "topk_softmax"],
                                 ["--expert-init", "copy_noise:lambda=0.3", "--scale", "down", "--routing", "topk_softmax"]]):
        told = convert(tmp_path / "m", tmp_path / f"out{i}", "--experts", 8, "--granularity", 2, "--top-k", 2, *options)
        assert not told["exact"]
        assert difference(before, logits(load(tmp_path / f"out{i}"))) > 1e-3


def test_permuted_units_keep_the_function(tmp_path):
    source = make_dense(tmp_path / "m", "llama")
    told = convert(tmp_path / "m", tmp_path / "out", "--granularity", 2, "--scale", "down", "--expert-init", "permute_units", "--init-all")
    assert told["exact"]
    assert difference(logits(source), logits(load(tmp_path / "out"))) < TOLERANCE


# What the paper computes.

def test_softmax_before_top_k_is_scaled_as_the_paper_says(tmp_path):
    make_dense(tmp_path / "m", "qwen3")
    told = convert(tmp_path / "m", tmp_path / "out", "--recipe", "paper", "--experts", 16, "--granularity", 4, "--top-k", 8)
    factor = (16 * 4 / 8) ** (1 / 3)  # X G^2 / K with E = X G
    assert told["plan"]["routing"] == "softmax_topk"
    assert told["plan"]["scale"] == pytest.approx({"gate": factor, "up": factor, "down": factor})
    before, after = read(tmp_path / "m"), read(tmp_path / "out")
    gate, down = before["model.layers.1.mlp.gate_proj.weight"], before["model.layers.1.mlp.down_proj.weight"]
    for expert in range(16):
        units = slice(16 * (expert % 4), 16 * (expert % 4) + 16)
        name = f"model.layers.1.mlp.experts.{expert}."
        assert torch.allclose(after[name + "gate_proj.weight"], gate[units] * factor, rtol=1e-6, atol=0)
        assert torch.allclose(after[name + "down_proj.weight"], down[:, units] * factor, rtol=1e-6, atol=0)
    rows = after["model.layers.1.mlp.gate.weight"]
    assert torch.equal(rows, rows[::4].repeat_interleave(4, 0))  # a virtual group's rows are equal
    assert rows.std().item() == pytest.approx(0.02, rel=0.2)
    assert len({tuple(row.tolist()) for row in rows}) == 4


@pytest.mark.parametrize("dim, factor", [(256, 1.5), (4096, 3.4)])
def test_calibration_divides_by_what_random_logits_add(tmp_path, dim, factor):
    """E = 64, G = K = 8: the output is so many times too large where logits are N(0, (0.02^2) dim)."""
    scale = {}
    for calibrated in (False, True):
        make_dense(tmp_path / f"m{calibrated}", "qwen3", hidden_size=dim, num_hidden_layers=1, vocab_size=8, intermediate_size=8)
        options = ["--experts", 64, "--granularity", 8, "--top-k", 8, "--scale", "down"] + ["--calibrate"] * calibrated
        scale[calibrated] = convert(tmp_path / f"m{calibrated}", tmp_path / f"out{calibrated}", *options)["plan"]["scale"]["down"]
    logit = torch.randn(1 << 17, 8, generator=torch.Generator().manual_seed(0)) * 0.02 * dim ** 0.5
    measured = (torch.softmax(logit, -1).max(-1).values.mean() * 8).item()
    assert scale[False] == 64
    assert scale[False] / scale[True] == pytest.approx(measured, rel=0.01)
    assert measured == pytest.approx(factor, rel=0.05)


# Layers, shared experts, routers, several models.

@pytest.mark.parametrize("moe", ["qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("options, layers", [(["--every", 2], [1]), (["--layers", "0,2"], [0, 2])])
def test_some_layers_stay_dense_bit_for_bit(tmp_path, moe, options, layers):
    dense = "qwen2" if moe == "qwen2_moe" else "qwen3"
    source = make_dense(tmp_path / "m", dense)
    convert(tmp_path / "m", tmp_path / "out", *options, "--recipe", "exact")
    before, after = read(tmp_path / "m"), read(tmp_path / "out")
    for layer in range(3):
        assert (f"model.layers.{layer}.mlp.gate.weight" in after) == (layer in layers)
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        assert layer in layers or torch.equal(after[name], before[name])
    assert difference(logits(source), logits(load(tmp_path / "out"))) < TOLERANCE


def test_the_last_layers_of_a_family_that_begins_dense(tmp_path):
    source = make_dense(tmp_path / "m", "llama")
    convert(tmp_path / "m", tmp_path / "out", "--to", "glm4_moe", "--layers", "1,2", "--scale", "down")
    assert difference(logits(source), logits(load(tmp_path / "out"))) < TOLERANCE
    done = coppice("convert", tmp_path / "m", tmp_path / "other", "--to", "glm4_moe", "--layers", "0,1")
    assert done.returncode == 2 and "the last layers" in done.stderr


@pytest.mark.parametrize("dense, moe, width", [("qwen2", "qwen2_moe", 20), ("qwen3", "glm4_moe", 32)])
def test_a_shared_expert_begins_as_nothing(tmp_path, dense, moe, width):
    source = make_dense(tmp_path / "m", dense)
    routing = ["--routing", "topk_softmax"] if moe == "qwen2_moe" else []
    convert(tmp_path / "m", tmp_path / "out", "--to", moe, "--granularity", 2, "--shared-expert", width, "--scale", "down", *routing)
    name = "model.layers.0.mlp.shared_expert" + ("s" if moe == "glm4_moe" else "")
    before, after = read(tmp_path / "m"), read(tmp_path / "out")
    assert torch.equal(after[name + ".up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"][:width])
    assert after[name + ".down_proj.weight"].abs().max() == 0
    assert difference(logits(source), logits(load(tmp_path / "out"))) < TOLERANCE


def test_rows_of_a_file_become_the_router(tmp_path):
    source = make_dense(tmp_path / "m", "mistral")
    rows = {f"router.{layer}": torch.randn(4, 32) for layer in range(3)}  # one for each virtual group
    save_file(rows, tmp_path / "rows.safetensors")
    convert(tmp_path / "m", tmp_path / "out", "--experts", 8, "--granularity", 2, "--scale", "down", "--router-rows", tmp_path / "rows.safetensors")
    after = read(tmp_path / "out")
    for layer in range(3):
        assert torch.equal(after[f"model.layers.{layer}.block_sparse_moe.gate.weight"], rows[f"router.{layer}"].repeat_interleave(2, 0))
    assert difference(logits(source), logits(load(tmp_path / "out"))) < TOLERANCE


def test_clusters_of_its_own_tokens_become_the_router(tmp_path):
    """The rows order each token's experts as the centres of what transformers computes before the feed-forward layer do."""
    source = make_dense(tmp_path / "m", "mistral")
    ids = torch.randint(0, source.config.vocab_size, (8, 32), generator=torch.Generator().manual_seed(5))
    write_tokens(tmp_path / "t", [*ids.flatten().tolist(), 0])
    rows = tmp_path / "rows.safetensors"
    done = coppice("cluster", tmp_path / "m", tmp_path / "t", "--clusters", 4, "--tokens", 256, "--sequence-length", 32, "--out", rows, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    inputs = {}
    for layer, block in enumerate(source.model.layers):
        block.mlp.register_forward_pre_hook(lambda _, given, layer=layer: inputs.__setitem__(layer, given[0].detach().flatten(0, 1)))
    with torch.no_grad():
        source(ids)
    for layer, x in inputs.items():
        row = load_file(rows)[f"router.{layer}"]
        assert row.shape == (4, 32) and row.mean(0).abs().max() < 1e-5
        logits_of_rows = x @ row.T
        counts = torch.bincount(logits_of_rows.argmax(1), minlength=4).tolist()
        assert counts == told["layers"][layer]["sizes"], "rows choose the cluster that a token is in"
        random = (0.02**2 * x.square().sum(1)).mean()
        assert logits_of_rows.var(1, unbiased=False).mean().item() == pytest.approx(random.item(), rel=1e-3)
    convert(tmp_path / "m", tmp_path / "out", "--experts", 8, "--granularity", 2, "--scale", "down", "--router-rows", rows)
    assert difference(logits(source), logits(load(tmp_path / "out"))) < TOLERANCE


@pytest.mark.parametrize("trunk", ["average", "first"])
def test_several_models_give_experts_each(tmp_path, trunk):
    for i in range(3):
        make_dense(tmp_path / f"m{i}", "mistral", seed=i, dtype=torch.bfloat16)
    models = [tmp_path / f"m{i}" for i in range(3)]
    told = convert(*models, tmp_path / "out", "--experts", 6, "--top-k", 2, "--trunk", trunk)
    assert not told["exact"]
    before, after = [read(m) for m in models], read(tmp_path / "out")
    for expert in range(6):
        name = f"model.layers.2.block_sparse_moe.experts.{expert}."
        for ours, theirs in [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")]:
            assert torch.equal(after[f"{name}{ours}.weight"], before[expert % 3][f"model.layers.2.mlp.{theirs}.weight"])
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        wanted = before[0][name] if trunk == "first" else (sum(b[name].double() for b in before) / 3).to(torch.bfloat16)
        assert torch.equal(after[name], wanted), name
    assert torch.isfinite(logits(load(tmp_path / "out"))).all()


def test_models_of_other_shapes_or_tokenizers_are_refused(tmp_path):
    make_dense(tmp_path / "a", "mistral")
    make_dense(tmp_path / "wide", "mistral", intermediate_size=80)
    make_dense(tmp_path / "base", "mistral", rope_parameters=dict(rope_type="default", rope_theta=5e4))
    make_dense(tmp_path / "llama", "llama")
    make_dense(tmp_path / "tokens", "mistral", seed=1)
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    (tmp_path / "tokens" / "tokenizer.json").write_text("[]")
    for other, words in [("wide", "mlp.gate_proj.weight' is F32 [80, 32]"), ("base", "'rope_parameters'"), ("llama", "one family"), ("tokens", "tokenizers may differ")]:
        done = coppice("convert", tmp_path / "a", tmp_path / other, tmp_path / "out")
        assert done.returncode == 3 and words in done.stderr, done.stderr
        assert not (tmp_path / "out").exists()


# What can and cannot be said in the other family.

def test_biases_go_where_there_is_a_place(tmp_path):
    source = make_dense(tmp_path / "m", "llama", attention_bias=True)
    convert(tmp_path / "m", tmp_path / "granite", "--to", "granitemoe", "--scale", "down")
    assert difference(logits(source), logits(load(tmp_path / "granite"))) < TOLERANCE
    done = coppice("convert", tmp_path / "m", tmp_path / "out", "--to", "qwen2_moe")
    assert done.returncode == 3 and "'model.layers.0.self_attn.o_proj.bias' (and in 2 more layers): qwen2_moe has no such tensor" in done.stderr
    make_dense(tmp_path / "ffn", "llama", mlp_bias=True)
    done = coppice("convert", tmp_path / "ffn", tmp_path / "out")
    assert done.returncode == 3 and "mlp.down_proj.bias" in done.stderr


@pytest.mark.parametrize("dense, moe, settings", [
    ("mistral", "mixtral", dict(sliding_window=8)), ("mistral", "qwen2_moe", dict(sliding_window=8)),
    ("qwen2", "qwen2_moe", dict(sliding_window=8, use_sliding_window=True, max_window_layers=1)),
    ("qwen3", "qwen3_moe", dict(sliding_window=8, use_sliding_window=True, max_window_layers=0))])
def test_local_attention_goes_where_it_can_be_said(tmp_path, dense, moe, settings):
    source = make_dense(tmp_path / "m", dense, **settings)
    unlimited = make_dense(tmp_path / "u", dense)
    routing = ["--routing", "topk_softmax"] if moe != "mixtral" else []
    convert(tmp_path / "m", tmp_path / "out", "--to", moe, "--scale", "down", *routing)
    before = logits(source)
    assert difference(before, logits(unlimited)) > 1e-3  # it matters here
    assert difference(before, logits(load(tmp_path / "out"))) < TOLERANCE


def test_local_attention_is_refused_where_it_cannot_be_said(tmp_path):
    make_dense(tmp_path / "m", "mistral", sliding_window=8)
    make_dense(tmp_path / "q", "qwen3", sliding_window=8, use_sliding_window=True, max_window_layers=1)
    for model, moe, words in [("m", "granitemoe", "no local attention"), ("q", "qwen3_moe", "all layers or none")]:
        done = coppice("convert", tmp_path / model, tmp_path / "out", "--to", moe)
        assert done.returncode == 3 and words in done.stderr
        assert convert(tmp_path / model, tmp_path / f"out-{moe}", "--to", moe, "--lossy")["losses"]
        load(tmp_path / f"out-{moe}")


@pytest.mark.parametrize("rope", [dict(rope_type="linear", factor=2.0, rope_theta=5e4),
                                  dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16, rope_theta=1e4)])
def test_rope_is_carried_over(tmp_path, rope):
    source = make_dense(tmp_path / "m", "llama", rope_parameters=rope)
    for moe in ("mixtral", "glm4_moe"):
        convert(tmp_path / "m", tmp_path / moe, "--to", moe, "--scale", "down")
        assert difference(logits(source), logits(load(tmp_path / moe))) < TOLERANCE


@pytest.mark.parametrize("moe", ["mixtral", "granitemoe"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings(tmp_path, moe, tied):
    for dense in ("llama", "gemma"):
        source = make_dense(tmp_path / dense, dense, tie_word_embeddings=tied)
        out = tmp_path / f"{dense}-out"
        convert(tmp_path / dense, out, "--to", moe, "--scale", "down")
        config = json.loads((out / "config.json").read_text())
        assert config["tie_word_embeddings"] == (tied and (dense, moe) != ("gemma", "mixtral"))
        assert difference(logits(source), logits(load(out))) < TOLERANCE


def test_gemma_in_bf16_scales_embeddings_as_it_did(tmp_path):
    """transformers multiplies by sqrt(32) rounded to bf16 and rounds: the folded embeddings are those values."""
    make_dense(tmp_path / "m", "gemma", dtype=torch.bfloat16)
    convert(tmp_path / "m", tmp_path / "out", "--scale", "down")
    before, after = read(tmp_path / "m"), read(tmp_path / "out")
    embedding = before["model.embed_tokens.weight"]
    assert torch.equal(after["model.embed_tokens.weight"], embedding * torch.tensor(32 ** 0.5).to(torch.bfloat16))
    assert torch.equal(after["lm_head.weight"], embedding)
    convert(tmp_path / "m", tmp_path / "granite", "--to", "granitemoe", "--scale", "down")
    multiplier = json.loads((tmp_path / "granite" / "config.json").read_text())["embedding_multiplier"]
    assert multiplier == torch.tensor(32 ** 0.5).to(torch.bfloat16).item()
    assert torch.equal(after["model.norm.weight"], (1 + before["model.norm.weight"].float()).to(torch.bfloat16))


# The way back.

@pytest.mark.parametrize(*pairs([("mistral", "mixtral"), ("llama", "granitemoe"), ("qwen2", "qwen2_moe"), ("qwen3", "qwen3_moe"), ("llama", "glm4_moe"), ("qwen3", "glm4_moe")]))
def test_the_average_of_copies_is_the_dense_model(tmp_path, dense, moe):
    source = make_dense(tmp_path / "m", dense)
    convert(tmp_path / "m", tmp_path / "moe", "--to", moe, "--scale", "none")
    told = convert(tmp_path / "moe", tmp_path / "back", "--dense-average")
    assert told["families"] == [moe, dense]
    before, after = read(tmp_path / "m"), read(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(source), logits(load(tmp_path / "back")))


def test_an_average_that_would_lose_something_is_refused(tmp_path):
    settings = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1, first_k_dense_replace=0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("glm4_moe", **COMMON, **settings)).save_pretrained(tmp_path / "m")
    done = coppice("convert", tmp_path / "m", tmp_path / "out", "--dense-average")
    assert done.returncode == 3 and "shared_experts" in done.stderr and "'partial_rotary_factor' of 0.5" in done.stderr


def test_the_average_is_that_of_all_experts(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model("mixtral", **COMMON, num_local_experts=5, num_experts_per_tok=2)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "m")
    convert(tmp_path / "m", tmp_path / "out", "--dense-average", "--to", "llama")
    before, after = read(tmp_path / "m"), read(tmp_path / "out")
    wanted = sum(before[f"model.layers.1.block_sparse_moe.experts.{e}.w2.weight"].double() for e in range(5)) / 5
    assert torch.equal(after["model.layers.1.mlp.down_proj.weight"], wanted.to(torch.bfloat16))
    load(tmp_path / "out")
