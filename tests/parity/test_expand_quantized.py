"""Experts stored in 8 and 4 bits grow byte for byte, scales included; transformers has no part in it: the files are written here as released
ones are."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from family_models import FAMILIES, differences, grown, make_model, read, read_config, rewrite, write_config  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"
BY_NAME = {family.name: family for family in FAMILIES}
COUNTS = {"2x": 8, "3x": 12, "6": 6}


def coppice(*arguments):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def random_bytes(*shape, generator):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def to_fp8(tensors, block, generator):
    """Matrices of the layers in F8_E4M3 with one scale a block, the rest in BF16; selection biases stay F32."""
    made = {}
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight") or name.endswith("kv_a_proj_with_mqa.weight"):
            rows, columns = tensor.shape
            made[name] = random_bytes(rows, columns, generator=generator).view(torch.float8_e4m3fn)
            made[name + "_scale_inv"] = torch.rand(-(-rows // block), -(-columns // block), generator=generator)
        elif name.endswith("e_score_correction_bias"):
            made[name] = tensor
        else:
            made[name] = tensor.bfloat16()
    return made, dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[block, block])


def to_mxfp4(tensors, block, generator):
    """Stacked experts as blocks of 32 numbers of 4 bits with one exponent each, along the inputs of every row; the rest in BF16."""
    made = {}
    for name, tensor in tensors.items():
        if name.endswith("_proj") and ".experts." in name:
            experts, inputs, outputs = tensor.shape
            made[name + "_blocks"] = random_bytes(experts, outputs, inputs // block, block // 2, generator=generator)
            made[name + "_scales"] = random_bytes(experts, outputs, inputs // block, generator=generator)
        else:
            made[name] = tensor.bfloat16()
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return made, dict(quant_method="mxfp4", modules_to_not_convert=left)


STORAGE = {  # family, how, size of a block
    "deepseek_v3-fp8": ("deepseek_v3", to_fp8, 128),  # blocks larger than the matrices
    "deepseek_v3-fp8_many_blocks": ("deepseek_v3", to_fp8, 16),
    "qwen3_moe-fp8": ("qwen3_moe", to_fp8, 128),
    "gpt_oss-mxfp4": ("gpt_oss", to_mxfp4, 32),
}


def make(storage, directory):
    """A quantised model on disk; returns its family, as stored."""
    name, quantise, block = STORAGE[storage]
    family = BY_NAME[name]
    if quantise is to_mxfp4:
        rows = (*family.rows, r"mlp\.experts\.(gate_up|down)_proj_(blocks|scales)")
        family = dataclasses.replace(family, rows=rows, settings=dict(family.settings, intermediate_size=64))
    make_model(family, directory)
    tensors, quantization = quantise(read(directory), block, torch.Generator().manual_seed(4))
    rewrite(directory, tensors)
    write_config(directory, dict(read_config(directory), quantization_config=quantization, dtype="bfloat16"))
    return family


@pytest.fixture(scope="module", params=STORAGE)
def model(request, tmp_path_factory):
    source = tmp_path_factory.mktemp(request.param) / "source"
    return make(request.param, source), source


@pytest.mark.parametrize("count", COUNTS)
def test_experts_grow_byte_for_byte_with_their_scales(model, tmp_path, count):
    family, source = model
    done = coppice("expand", source, tmp_path / "out", "--experts", count, "--router-init", "copy")
    assert done.returncode == 0, done.stderr
    parents = json.loads((tmp_path / "out" / "coppice.json").read_text())["steps"][-1]["parents"]
    assert all(len(of_layer) == COUNTS[count] for of_layer in parents.values())
    before, after = read(source), read(tmp_path / "out")
    problems = differences(grown(family, before, parents, COUNTS[count]), after)
    assert not problems, "\n".join(problems[:20])
    assert read_config(tmp_path / "out") == dict(read_config(source), **{family.experts: COUNTS[count]})
    done = coppice("verify", source, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_scale_does_not_pass_verify(model, tmp_path):
    family, source = model
    assert coppice("expand", source, tmp_path / "out", "--router-init", "copy").returncode == 0
    tensors = read(tmp_path / "out")
    last = max(name for name in tensors if "experts" in name and name.endswith(("_scale_inv", "_scales")))
    tensors[last].view(torch.uint8).view(-1)[-1] ^= 1
    rewrite(tmp_path / "out", tensors)
    assert coppice("verify", source, tmp_path / "out").returncode == 1


# Routers are BF16: methods that change their rows need no other experts.
def test_routers_of_quantised_models_take_any_method(model, tmp_path):
    family, source = model
    done = coppice("expand", source, tmp_path / "out", "--router-init", "copy_noise")
    assert done.returncode == 0, done.stderr
    parents = json.loads((tmp_path / "out" / "coppice.json").read_text())["steps"][-1]["parents"]
    problems = differences(grown(family, read(source), parents, 8), read(tmp_path / "out"))
    assert problems and all("gate.weight" in line or "router." in line for line in problems), "\n".join(problems[:20])


# Values of 8 and 4 bits cannot be computed with as they are: the error says so, and names a tensor.
@pytest.mark.parametrize("method", ["copy_noise", "drop_units"])
def test_methods_that_change_values_are_refused(model, tmp_path, method):
    _, source = model
    done = coppice("expand", source, tmp_path / "out", "--expert-init", method, "--router-init", "copy")
    assert done.returncode in (2, 3), (done.returncode, done.stderr)
    assert method in done.stderr and ("F8_E4M3" in done.stderr or "U8" in done.stderr or "mxfp4" in done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_inspect_counts_experts(model):
    _, source = model
    done = coppice("inspect", source, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["experts"] == 4
