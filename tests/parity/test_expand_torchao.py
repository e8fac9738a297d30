"""torchao keeps a description of every tensor in the metadata of the files: new experts get theirs, so that torchao reads them back."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

pytest.importorskip("torchao", reason="torchao is not installed")
sys.path.insert(0, str(pathlib.Path(__file__).parent))
from family_models import FAMILIES, grown, make_model, read, read_config, write_config  # noqa: E402
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict  # noqa: E402
from torchao.quantization import Int8WeightOnlyConfig, quantize_  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"
FAMILY = next(family for family in FAMILIES if family.name == "qwen3_moe")


def coppice(*arguments):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def quantised(tensor):
    layer = torch.nn.Linear(*reversed(tensor.shape), bias=False, dtype=torch.bfloat16)
    layer.weight = torch.nn.Parameter(tensor.bfloat16(), requires_grad=False)
    quantize_(layer, Int8WeightOnlyConfig(version=2))
    return layer.weight.data


def load(directory):
    tensors, metadata = {}, {}
    for shard in sorted(directory.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            metadata.update(file.metadata())
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    whole, rest = unflatten_tensor_state_dict(tensors, metadata)
    assert not rest, list(rest)[:5]
    return {name: tensor.dequantize() if hasattr(tensor, "dequantize") and type(tensor) is not torch.Tensor else tensor
            for name, tensor in whole.items()}


@pytest.mark.parametrize("shards", [("5GB",), ("30000",)], ids=["one file", "several files"])
def test_torchao_reads_the_expanded_model(tmp_path, shards):
    make_model(dataclasses.replace(FAMILY, aliases=()), tmp_path / "plain")
    plain = {name: tensor.bfloat16() for name, tensor in read(tmp_path / "plain").items()}
    stored = {name: quantised(tensor) if name.endswith("_proj.weight") else tensor for name, tensor in plain.items()}
    tensors, metadata = flatten_tensor_state_dict(stored)
    source = tmp_path / "source"
    source.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, source / "model.safetensors", {**metadata, "format": "pt"})
    config = dict(quant_method="torchao", quant_type={"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}})
    write_config(source, dict(read_config(tmp_path / "plain"), quantization_config=config, dtype="bfloat16"))
    done = coppice("expand", source, tmp_path / "out", "--experts", "6", "--router-init", "copy", "--max-shard-bytes", *shards)
    assert done.returncode == 0, done.stderr
    done = coppice("verify", source, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    parents = json.loads((tmp_path / "out" / "coppice.json").read_text())["steps"][-1]["parents"]
    wanted, found = grown(FAMILY, load(source), parents, 6), load(tmp_path / "out")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_lost_metadata_does_not_pass_verify(tmp_path):
    make_model(dataclasses.replace(FAMILY, aliases=()), tmp_path / "plain")
    plain = {name: tensor.bfloat16() for name, tensor in read(tmp_path / "plain").items()}
    tensors, metadata = flatten_tensor_state_dict(
        {name: quantised(tensor) if name.endswith("_proj.weight") else tensor for name, tensor in plain.items()})
    source = tmp_path / "source"
    source.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, source / "model.safetensors", {**metadata, "format": "pt"})
    write_config(source, dict(read_config(tmp_path / "plain"), quantization_config=dict(quant_method="torchao"), dtype="bfloat16"))
    assert coppice("expand", source, tmp_path / "out").returncode == 0
    save_file(read(tmp_path / "out"), tmp_path / "out" / "model.safetensors", {"format": "pt"})
    done = coppice("verify", source, tmp_path / "out")
    assert done.returncode == 1 and "metadata" in done.stdout, done.stdout + done.stderr
