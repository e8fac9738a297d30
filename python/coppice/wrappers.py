"""Modules around a model: those that are looked through, and those that are refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from coppice.errors import UnsupportedError, UsageError, a_type

_DDP = "DistributedDataParallel"


def inner_model(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's wrapper, else the model itself.

    Raises
    ------
    UsageError
        It is no module.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model: {a_type(model)}; wanted a torch module")
    while isinstance(original := getattr(model, "_orig_mod", None), nn.Module):
        model = original
    return model


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has compiled the model or a part of it."""
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        return True
    return any(
        isinstance(getattr(module, "_orig_mod", None), nn.Module) or module._compiled_call_impl is not None
        for module in model.modules()
    )


def without_ddp(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's wrapper and DistributedDataParallel."""
    while True:
        outer: Any = model
        inside = inner_model(outer.module if type(outer).__name__ == _DDP else outer)
        if inside is model:
            return model
        model = inside


def plain_path(path: str) -> str:
    """A path without what wrappers of parts add to it."""
    for added in ("_orig_mod.", "_checkpoint_wrapped_module."):
        path = path.replace(added, "")
    return path


def refuse_wrapped(model: nn.Module, *, sharded: bool = False) -> None:
    """Refuse models whose parameters another object has laid out anew.

    Parameters
    ----------
    sharded : bool
        It may be sharded by fully_shard.

    Raises
    ------
    UnsupportedError
        Distributed wrappers that keep the sizes of parameters: DDP, FSDP, DeepSpeed.
    UsageError
        It is no module.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model: a {type(model).__name__}; wanted a module")
    for path, module in model.named_modules():
        name = type(module).__name__
        where = f"module {path}" if path else "the model"
        if name == _DDP:
            raise UnsupportedError(
                f"{where} is a {name}, which keeps the sizes of the parameters that it was made with (grow the model "
                "inside it, model.module, with its optimizer, and wrap it again; or fill a larger model that you wrap "
                "as this one with coppice.expand_into)"
            )
        if name in ("FullyShardedDataParallel", "DeepSpeedEngine"):
            raise UnsupportedError(
                f"{where} is a {name}, which lays out the parameters in buffers of its own "
                "(save a checkpoint, expand it with coppice expand or coppice-dcp, and load it into a model with more "
                "experts)"
            )
        if _is_fully_sharded(module) and not sharded:
            raise UnsupportedError(
                f"{where} is sharded by fully_shard, which keeps the sizes of its parameters (make a larger model as "
                "you made this one, and fill it with coppice.expand_into)"
            )


def reshard(model: nn.Module) -> None:
    """Parameters that fully_shard has put together for a forward pass are in parts again."""
    module: Any
    for module in model.modules():
        if _is_fully_sharded(module):
            module.reshard()


def _is_fully_sharded(module: nn.Module) -> bool:
    return type(module).__name__.startswith("FSDP") and hasattr(module, "unshard")


def reset_compiled(model: nn.Module) -> None:
    """Forget what torch.compile made for the shapes before."""
    if is_compiled(model):
        torch.compiler.reset()
