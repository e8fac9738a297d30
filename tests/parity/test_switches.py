"""Every switch of a family's table at a value that is not its default: what coppice says of a growth is what transformers computes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import AutoConfig

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from family_models import FAMILIES, VOCAB, make_model, read  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"
COPIES = ("--router-init", "copy", "--expert-init", "copy")
SAME = 5e-6  # as in test_expand_families.py
OTHER = 1e-3  # the least that a growth which is not exact moves these models by

BY_NAME = {family.name: family for family in FAMILIES}

# (name, family, configuration): keys of the part that has the experts.
SWITCHES = [
    ("dbrx_two_norm", "dbrx", dict(ffn_config=dict(moe_normalize_expert_weights=2.0))),
    ("dbrx_no_norm", "dbrx", dict(ffn_config=dict(moe_normalize_expert_weights=None))),
    ("hunyuan_list", "hunyuan_v1_moe", dict(moe_topk=[1, 2, 1])),
    ("cohere2_sigmoid", "cohere2_moe", dict(expert_selection_fn="sigmoid")),
    ("cohere2_sigmoid_raw", "cohere2_moe", dict(expert_selection_fn="sigmoid", norm_topk_prob=False)),
    ("kimi_raw", "kimi_linear", dict(moe_renormalize=False)),
    ("kimi_groups", "kimi_linear", dict(num_expert_group=2, topk_group=1, num_experts_per_token=1)),
    ("lfm2_no_bias", "lfm2_moe", dict(use_expert_bias=False)),
    ("lfm2_raw", "lfm2_moe", dict(norm_topk_prob=False, routed_scaling_factor=1.5)),
    ("laguna_softcap", "laguna", dict(moe_router_logit_softcapping=2.0)),
    ("qwen3_next_raw", "qwen3_next", dict(norm_topk_prob=False)),
    ("mellum_normed", "mellum", dict(norm_topk_prob=True)),
    ("flex_olmo_normed", "flex_olmo", dict(norm_topk_prob=True)),
    ("exaone_raw", "exaone_moe", dict(norm_topk_prob=False)),
    ("nemotron_raw", "nemotron_h", dict(norm_topk_prob=False)),
    ("mimo_raw", "mimo_v2_flash", dict(norm_topk_prob=False)),
    ("bailing_raw", "bailing_hybrid", dict(moe_renormalize=False)),
    ("bailing_groups", "bailing_hybrid", dict(num_expert_group=2, topk_group=1)),
    ("beam_raw", "beam", dict(norm_topk_prob=False)),
    ("kolibri1_normed", "kolibri1", dict(norm_topk_prob=True)),
    ("lara_raw", "lara_mini", dict(norm_topk_prob=False)),
    ("qwen4_raw", "qwen4_exp_text", dict(norm_topk_prob=False)),
    ("mistral4_groups", "mistral3", dict(text_config=dict(n_group=2, topk_group=1))),
    ("mistral4_raw", "mistral3", dict(text_config=dict(norm_topk_prob=False, routed_scaling_factor=1.5))),
    ("mistral_large4_groups", "mistral_large4", dict(text_config=dict(n_group=2, topk_group=1))),
    ("glm5_next_groups", "glm5_next", dict(text_config=dict(n_group=2, topk_group=1))),
    ("deepseek_ocr2_groups", "deepseek_ocr2", dict(text_config=dict(topk_method="group_limited_greedy", n_group=2, topk_group=1))),
]


def coppice(*arguments):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def logits(family, directory):
    model, info = getattr(transformers, family.auto).from_pretrained(directory, output_loading_info=True, dtype="auto")
    complaints = {kind: found for kind, found in info.items() if found}
    assert not complaints, complaints
    tokens = torch.randint(0, VOCAB - 4, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(tokens).logits


def difference(a, b):
    return float((a - b).abs().max() / a.abs().max())


def switched(family, directory, settings):
    """The family's tiny model with other values of some keys."""
    if family.missing:
        pytest.skip(family.missing)
    merged = dict(family.settings)
    for key, value in settings.items():
        merged[key] = {**merged[key], **value} if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    changed = type(family)(**{**{f: getattr(family, f) for f in family.__dataclass_fields__}, "settings": merged})
    make_model(changed, directory)
    return changed


@pytest.mark.parametrize("name, family_name, settings", SWITCHES, ids=[case[0] for case in SWITCHES])
def test_a_verdict_on_wider_top_k_is_what_transformers_computes(tmp_path, name, family_name, settings):
    family = switched(BY_NAME[family_name], tmp_path / "m", settings)
    done = coppice("expand", tmp_path / "m", tmp_path / "out", "--experts", "2x", "--top-k", "scale", "--json", *COPIES)
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    moved = difference(logits(family, tmp_path / "m"), logits(family, tmp_path / "out"))
    assert moved < SAME if verdict["exact"] else moved > OTHER, (moved, verdict["exactness"])


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, None])
def test_splitting_keeps_the_function_for_any_norm_of_gates(tmp_path, p):
    family = switched(BY_NAME["dbrx"], tmp_path / "m", dict(ffn_config=dict(moe_normalize_expert_weights=p)))
    done = coppice("expand", tmp_path / "m", tmp_path / "out", "--split", "2")
    assert done.returncode == 0, done.stderr
    assert difference(logits(family, tmp_path / "m"), logits(family, tmp_path / "out")) < SAME


def test_lists_of_top_k_are_scaled_and_restored_element_by_element(tmp_path):
    switched(BY_NAME["hunyuan_v1_moe"], tmp_path / "m", dict(moe_topk=[1, 2, 1]))
    assert coppice("expand", tmp_path / "m", tmp_path / "out", "--experts", "2x", "--top-k", "scale", *COPIES).returncode == 0
    done = coppice("expand", tmp_path / "out", tmp_path / "back", "--undo")
    assert done.returncode == 0, done.stderr
    top_k = [json.loads((tmp_path / d / "config.json").read_text())["moe_topk"] for d in ("m", "out", "back")]
    assert top_k == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert (tmp_path / "back" / "config.json").read_text() == (tmp_path / "m" / "config.json").read_text()


# Families whose layout in memory differs from that of released files, one of each kind of difference.
PACKED = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "qwen3_next", "jamba", "minimax_m2", "granitemoe", "granitemoehybrid", "hy_v3", "laguna",
          "exaone_moe", "kimi_linear", "nemotron_h", "ernie4_5_moe", "phimoe", "lfm2_moe", "deepseek_v3", "glm4v_moe", "qwen3_5_moe"]


@pytest.mark.parametrize("name", PACKED)
def test_models_saved_as_they_are_in_memory_grow_alike(tmp_path, name):
    family = BY_NAME[name]
    make_model(family, tmp_path / "m")
    model = getattr(transformers, family.auto).from_pretrained(tmp_path / "m", dtype="auto")
    model.save_pretrained(tmp_path / "packed", save_original_format=False)
    assert any(key.endswith("experts.down_proj") for key in read(tmp_path / "packed"))
    for source, out in (("m", "a"), ("packed", "b")):
        done = coppice("expand", tmp_path / source, tmp_path / out, "--experts", "2x", "--seed", "3", "--expert-init", "copy_noise")
        assert done.returncode == 0, done.stderr
        done = coppice("verify", tmp_path / source, tmp_path / out)
        assert done.returncode == 0, done.stdout + done.stderr
    assert torch.equal(logits(family, tmp_path / "a"), logits(family, tmp_path / "b"))
    assert {key for key in read(tmp_path / "b")} == {key for key in read(tmp_path / "packed")}  # the layout found


def test_a_head_that_is_the_embeddings_is_carried_along(tmp_path):
    config = AutoConfig.for_model("qwen3", vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                                  num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    from safetensors.torch import load_file, save_file
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    seen = json.loads(coppice("inspect", tmp_path / "m", "--json").stdout)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert seen["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert seen["unsupported_in_training"] == []
    done = coppice("convert", tmp_path / "m", tmp_path / "out", "--recipe", "exact", "--experts", "4", "--top-k", "2")
    assert done.returncode == 0, done.stderr
    done = coppice("verify", tmp_path / "m", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
