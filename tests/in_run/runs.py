"""Tiny models in memory, and what the tests of expand_ do with them."""

import json
import os
import pathlib
import subprocess
import sys

import torch
import transformers
from safetensors import safe_open

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
import family_models  # noqa: E402

import coppice  # noqa: E402

PROGRAM = pathlib.Path(coppice.__file__).parent / "bin" / "coppice"
SEVEN = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "glm4_moe", "deepseek_v3", "gpt_oss")
FAMILIES = {family.name: family for family in family_models.FAMILIES}
TOKENS = torch.arange(24).reshape(2, 12) % family_models.VOCAB
transformers.logging.set_verbosity_error()


def model_of(name, dtype=torch.float32):
    """A tiny random model; the same each time."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    kind = getattr(transformers, family.auto)
    make = kind.from_config if hasattr(kind, "from_config") else kind._from_config  # an Auto class, or the class itself
    model = make(family_models.configuration(family), dtype=dtype)
    family_models.randomise(model)
    return model


def step(model, optimizer, tokens=TOKENS):
    """One training step; returns the loss before it."""
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss)


def saved(model, directory):
    """What save_pretrained writes: tensors and configuration."""
    model.save_pretrained(directory)
    return read(directory)


def read(directory):
    tensors = {}
    for file in sorted(pathlib.Path(directory).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})
    return tensors, json.loads((pathlib.Path(directory) / "config.json").read_text())


def assert_same_tensors(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(bits(found[name]), bits(tensor)), name


def bits(tensor):
    """Its bytes, so that NaN equals itself and 0 differs from -0."""
    return tensor.detach().contiguous().view(torch.uint8) if tensor.dim() else tensor.detach().reshape(1).view(torch.uint8)


def program(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120, env=os.environ)


def everything(model, optimizer=None):
    """All that expand_ may change, to compare later: tensors, numbers of modules, configuration, optimizer."""
    out = {f"model.{name}": tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items() if torch.is_tensor(tensor)}
    numbers = {f"{path}.{key}": value for path, module in model.named_modules() for key, value in vars(module).items()
               if isinstance(value, int | float)}
    modules = [(path, id(module)) for path, module in model.named_modules()]
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    config = json.dumps(family_config(model), sort_keys=True)
    groups, state = [], {}
    if optimizer is not None:
        groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
        state = {(id(p), key): value.clone() if isinstance(value, torch.Tensor) else value
                 for p, of_p in optimizer.state.items() for key, value in of_p.items()}
    return out, numbers, modules, grads, config, groups, state


def family_config(model):
    config = getattr(model, "config", None)
    return json.loads(config.to_json_string()) if hasattr(config, "to_json_string") else {}


def assert_unchanged(before, after):
    assert before[1:3] == after[1:3] and before[4:6] == after[4:6]
    for was, now in ((before[0], after[0]), (before[3], after[3]), (before[6], after[6])):
        assert was.keys() == now.keys()
        for name, value in was.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(bits(value), bits(now[name])), name
            else:
                assert value == now[name], name
