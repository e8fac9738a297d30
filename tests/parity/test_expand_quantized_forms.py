"""Every quantised form is copied with all that lies beside its matrices, whatever it is called, and every message names the quantisation."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from family_models import FAMILIES, differences, grown, make_model, read, read_config, rewrite, write_config  # noqa: E402
from quantised_models import FORMS, Random  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"
BY_NAME = {family.name: family for family in FAMILIES}
SIZES = dict(moe_intermediate_size=32, intermediate_size=32)
COUNTS = {"2x": 8, "3x": 12, "6": 6}


def coppice(*arguments):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module", params=["qwen3_moe", "deepseek_v3"])
def plain(request, tmp_path_factory):
    """A tiny model in F32, to be quantised."""
    family = BY_NAME[request.param]
    latent = dict(kv_lora_rank=32, q_lora_rank=32) if "kv_lora_rank" in family.settings else {}
    family = dataclasses.replace(family, settings={**family.settings, **SIZES, **latent}, aliases=())
    directory = tmp_path_factory.mktemp(request.param) / "plain"
    make_model(family, directory)
    return family, directory


@pytest.fixture(scope="module", params=FORMS)
def model(request, plain, tmp_path_factory):
    family, directory = plain
    quantise, name = FORMS[request.param]
    tensors, quantization = quantise(read(directory), Random())
    source = tmp_path_factory.mktemp(request.param) / "source"
    source.mkdir()
    rewrite(source, tensors)
    write_config(source, dict(read_config(directory), quantization_config=quantization, dtype="bfloat16"))
    return family, source, name


@pytest.mark.parametrize("count", COUNTS)
def test_experts_are_copied_with_all_that_lies_beside_them(model, tmp_path, count):
    family, source, name = model
    done = coppice("expand", source, tmp_path / "out", "--experts", count, "--router-init", "copy")
    assert done.returncode == 0, done.stderr
    assert name in done.stdout, done.stdout
    parents = json.loads((tmp_path / "out" / "coppice.json").read_text())["steps"][-1]["parents"]
    problems = differences(grown(family, read(source), parents, COUNTS[count]), read(tmp_path / "out"))
    assert not problems, "\n".join(problems[:20])
    assert read_config(tmp_path / "out") == dict(read_config(source), **{family.experts: COUNTS[count]})
    done = coppice("verify", source, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr


def test_router_methods_need_no_other_experts(model, tmp_path):
    _, source, _ = model
    done = coppice("expand", source, tmp_path / "out", "--router-init", "copy_noise")
    assert done.returncode == 0, done.stderr
    done = coppice("verify", source, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr


REFUSED = {
    "a method that changes values": ("expand", "SOURCE", "OUT", "--expert-init", "copy_noise"),
    "a split": ("expand", "SOURCE", "OUT", "--split", "2"),
    "a conversion": ("convert", "SOURCE", "OUT", "--to", "llama"),
    "an average": ("convert", "SOURCE", "OUT", "--dense-average"),
    "norms": ("inspect", "SOURCE", "--experts"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_name_the_quantisation(model, tmp_path, what):
    _, source, name = model
    arguments = [dict(SOURCE=source, OUT=tmp_path / "out").get(argument, argument) for argument in REFUSED[what]]
    done = coppice(*arguments)
    assert done.returncode == 3 and name in done.stderr, (done.returncode, done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_inspect_and_verify_name_the_quantisation(model):
    _, source, name = model
    done = coppice("inspect", source)
    assert done.returncode == 0 and name in done.stdout, done.stdout + done.stderr
    done = coppice("verify", source, source)
    assert done.returncode == 0 and name in done.stdout, done.stdout + done.stderr


def test_a_changed_companion_does_not_pass_verify(model, tmp_path):
    _, source, name = model
    assert coppice("expand", source, tmp_path / "out", "--router-init", "copy").returncode == 0
    tensors = read(tmp_path / "out")
    for last in [key for key in tensors if ".experts.7.down_proj" in key]:
        changed = dict(tensors)
        flat = tensors[last].clone()
        if flat.numel() == 0:
            continue
        import torch
        flat.reshape(-1).view(torch.uint8)[0] ^= 1
        changed[last] = flat
        rewrite(tmp_path / "out", changed)
        done = coppice("verify", source, tmp_path / "out")
        assert done.returncode == 1 and last in done.stdout + done.stderr and name in done.stdout + done.stderr, done.stdout + done.stderr
        break
