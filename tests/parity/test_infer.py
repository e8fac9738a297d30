"""Families inferred from real checkpoints of transformers: what is inferred expands to the same bytes as the family's own table, or it is
refused with the rule. The sizes include those where the number of experts is the size of something else too."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from family_models import FAMILIES, differences, make_model, randomise, read, read_config  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"
# By table some families place children beside their parents and others after all; the file of an inferred one does not know more.
COPIES = ("--experts", "2x", "--router-init", "copy", "--expert-init", "copy")
inferred = set()


def coppice(*arguments):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def expanded(source, out, *options):
    done = coppice("expand", source, out, *COPIES, *options)
    assert done.returncode == 0, done.stderr
    return read(out), read_config(out)


def with_experts(settings, experts, number):
    """The settings with another number of experts, under every key that counts them."""
    if not isinstance(settings, dict):
        return settings
    counts = {key: number for key, value in settings.items() if re.search("experts?(_num)?$", key) and "_per_" not in key and value == experts}
    return {key: counts.get(key, with_experts(value, experts, number)) for key, value in settings.items()}


# 8 is the width of a head, 32 that of the model: then the rules have to tell experts from those, or refuse.
@pytest.mark.parametrize("experts", [4, 8, 32])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_inferred_families_are_right_or_refused(family, experts, tmp_path):
    try:
        make_model(dataclasses.replace(family, settings=with_experts(family.settings, family.num_experts, experts)), tmp_path / "m")
    except Exception as error:  # the model's class checks its configuration
        pytest.skip(f"transformers makes no such model with {experts} experts: {error}")
    found = coppice("inspect", tmp_path / "m", "--infer", "--write-family", tmp_path / "f.toml")
    if found.returncode == 3:
        assert "rule" in found.stderr, found.stderr
        return
    assert found.returncode == 0, found.stderr
    inferred.add((family.name, experts))
    order = "siblings" if "num_groups_key" in (tmp_path / "f.toml").read_text() else "append"
    tensors, config = expanded(tmp_path / "m", tmp_path / "by-rules", "--family-file", tmp_path / "f.toml", "--order", order)
    wanted, wanted_config = expanded(tmp_path / "m", tmp_path / "by-table", "--order", order)
    assert not differences(wanted, tensors)
    assert config == wanted_config


# Two sets of experts in a layer, for text and for images, each with a router of its own. coppice's table refuses the files as released, where the experts of
# both are one list under routers with columns; in the layout that transformers has in memory the rules tell them apart.
def test_two_sets_of_experts_in_a_layer_grow_in_the_memory_layout(tmp_path):
    sizes = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    text = dict(sizes, vocab_size=64, intermediate_size=48, num_hidden_layers=3, moe_num_experts=4, moe_k=2, moe_intermediate_size=[24, 12], moe_num_shared_experts=1,
                mlp_layer_types=["dense", "sparse", "sparse"], rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[1, 1, 2]))
    vision = dict(hidden_size=16, intermediate_size=16, depth=1, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_merge_size=2)
    config = transformers.AutoConfig.for_model("ernie4_5_vl_moe", text_config=text, vision_config=vision, image_token_id=60, video_token_id=61,
                                               image_start_token_id=62, image_end_token_id=63, video_start_token_id=58, video_end_token_id=59)
    model = transformers.Ernie4_5_VLMoeForConditionalGeneration._from_config(config, dtype=torch.float32).eval()
    randomise(model)
    model.save_pretrained(tmp_path / "released")
    model.save_pretrained(tmp_path / "m", save_original_format=False)
    refused = coppice("expand", tmp_path / "released", tmp_path / "no", *COPIES, "--family-file", "auto")
    assert refused.returncode == 3 and "rule" in refused.stderr, refused.stderr
    tensors, config = expanded(tmp_path / "m", tmp_path / "out", "--family-file", "auto", "--order", "append")
    assert config["text_config"]["moe_num_experts"] == 8
    done = coppice("verify", tmp_path / "m", tmp_path / "out", "--family-file", "auto")
    assert done.returncode == 0, done.stdout + done.stderr
    before = read(tmp_path / "m")
    sets = [name for name in before if re.search(r"\.(text|vision)_moe\.(gate\.weight|gate\.moe_statics\.e_score_correction_bias|experts\.(gate_up|down)_proj)$", name)]
    assert len(sets) == 2 * 2 * 4
    for name, tensor in before.items():
        copies = torch.cat([tensor, tensor], dim=1 if "moe_statics" in name else 0) if name in sets else tensor
        assert torch.equal(tensors.pop(name), copies), name
    assert not tensors
    loaded, info = transformers.Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True, dtype="auto")
    assert not {kind: found for kind, found in info.items() if found}
    loaded = loaded.eval()
    loaded.config.text_config.moe_k = 4
    for module in loaded.modules():  # K doubled, and the bias, added to probabilities, halved: the function of the model before
        if hasattr(module, "moe_statics"):
            module.top_k = 4
            module.moe_statics.e_score_correction_bias.data /= 2
    tokens = torch.randint(0, 58, (1, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        kinds = (torch.arange(16) % 3 == 0)[None].int()  # tokens of both kinds
        first, second = (m(tokens, moe_mm_token_type_ids=kinds).logits for m in (model, loaded))
    assert (first - second).abs().max() / first.abs().max() < 1e-5


def test_most_families_are_inferred():
    """Runs last: a rule that refuses everything would pass the test above."""
    assert len(inferred) >= 95, f"{len(inferred)}: {sorted({family.name for family in FAMILIES} - {name for name, _ in inferred})}"
