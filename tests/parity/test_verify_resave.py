"""`coppice verify` of models that transformers has opened and saved again: other keys, other files, the same model."""

import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys

import pytest
import transformers
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from family_models import FAMILIES as ALL_FAMILIES  # noqa: E402
from family_models import make_model  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
FAMILIES = ["qwen3_moe", "mixtral", "gpt_oss", "granitemoe", "glm4_moe", "minimax_m2"]

# Those whose tensors have other names in memory than in files.
RENAMED = ["mixtral", "minimax", "minimax_m2", "granitemoe", "granitemoeshared", "granitemoehybrid", "phimoe", "hy_v3", "laguna", "mimo_v2_flash",
           "exaone_moe", "nemotron_h", "ernie4_5_moe", "aria"]


def run(*arguments):
    return subprocess.run([BUILD / "coppice", *map(str, arguments)], capture_output=True, text=True, timeout=120)


def save_again(source, target):
    model, info = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, dtype="auto")
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    model.save_pretrained(target, max_shard_size="100KB")


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, tmp_path_factory):
    """A model as coppice makes it, grown, and both saved again by transformers."""
    root = tmp_path_factory.mktemp(request.param)
    made = subprocess.run([BUILD / "tests" / "families_generate", root / "m", request.param, "F32", "shared_width=0"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    done = run("expand", root / "m", root / "out", "--experts", "2x", "--expert-init", "drop_upcycle")
    assert done.returncode == 0, done.stderr
    for name in ("m", "out"):
        save_again(root / name, root / f"{name}-saved")
    return root


@pytest.mark.parametrize("before, after", [("m", "m-saved"), ("out", "out-saved"), ("m", "out-saved"), ("m-saved", "out-saved")])
def test_a_model_saved_again_is_the_same_model(models, before, after):
    done = run("verify", models / before, models / after)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("ok: every tensor is accounted for"), done.stdout


def test_keys_that_are_lost_are_problems(models):
    """transformers writes keys out that a configuration leaves to defaults; nothing tells what their absence means."""
    done = run("verify", models / "m-saved", models / "m")
    assert done.returncode == 1 and "is absent; wanted" in done.stdout, done.stdout + done.stderr


def test_with_its_lineage_it_is_made_again(models, tmp_path):
    shutil.copytree(models / "out-saved", tmp_path / "saved")
    shutil.copy(models / "out" / "coppice.json", tmp_path / "saved")
    done = run("verify", models / "m", tmp_path / "saved")
    assert done.returncode == 0 and "recomputed and compared byte for byte" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("before", ["m", "m-saved"])
def test_one_changed_byte_is_found(models, tmp_path, before):
    shutil.copytree(models / "out-saved", tmp_path / "saved")
    shard = sorted((tmp_path / "saved").glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    name, tensor = min(((name, t) for name, t in json.loads(data[8:begin]).items() if name != "__metadata__"), key=lambda pair: pair[1]["data_offsets"])
    data[begin + tensor["data_offsets"][0]] ^= 1
    shard.write_bytes(data)
    done = run("verify", models / before, tmp_path / "saved")
    assert done.returncode == 1 and f"'{name}" in done.stdout, done.stdout + done.stderr


@pytest.fixture(scope="module", params=[family for family in ALL_FAMILIES if family.name in RENAMED], ids=lambda family: family.name)
def in_memory(request, tmp_path_factory):
    """A model, grown, and both as transformers has them in memory."""
    family, root = request.param, tmp_path_factory.mktemp(request.param.name)
    make_model(family, root / "m")
    done = run("expand", root / "m", root / "out", "--experts", "2x", "--expert-init", "copy_noise")
    assert done.returncode == 0, done.stderr
    for name in ("m", "out"):
        model = getattr(transformers, family.auto).from_pretrained(root / name, dtype="auto")
        model.save_pretrained(root / f"{name}-saved", save_original_format=False)
    shutil.copytree(root / "out-saved", root / "lineage")
    shutil.copy(root / "out" / "coppice.json", root / "lineage")
    return root


@pytest.mark.parametrize("before, after", [("m", "m-saved"), ("m-saved", "m"), ("out", "out-saved"), ("m", "out-saved"), ("m", "lineage"), ("m-saved", "out")])
def test_tensors_are_found_by_what_they_are(in_memory, before, after):
    done = run("verify", in_memory / before, in_memory / after)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("ok: every tensor is accounted for"), done.stdout + done.stderr


@pytest.mark.parametrize("before, after", [("m", "out-saved"), ("m", "lineage"), ("m", "m-saved")])
def test_one_changed_byte_is_found_in_memory_layout(in_memory, tmp_path, before, after):
    shutil.copytree(in_memory / after, tmp_path / "saved")
    shard = tmp_path / "saved" / "model.safetensors"
    data = bytearray(shard.read_bytes())
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    tensors = {name: tensor for name, tensor in json.loads(data[8:begin]).items() if name != "__metadata__"}
    router = next(name for name in sorted(tensors) if name.endswith(("mlp.gate.weight", "router.weight", "mixer.gate.weight")))
    data[begin + tensors[router]["data_offsets"][0] + 3] ^= 0x10
    shard.write_bytes(data)
    assert run("verify", in_memory / before, tmp_path / "saved").returncode == 1
