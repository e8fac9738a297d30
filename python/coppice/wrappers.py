"""Modules around a model: those that are looked through, and those that are refused."""

from __future__ import annotations

import torch
from torch import nn

from coppice.errors import UnsupportedError, UsageError, a_type


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


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse models whose parameters another object has laid out anew.

    Raises
    ------
    UnsupportedError
        Distributed wrappers that keep the sizes of parameters: DDP, FSDP, DeepSpeed.
    """
    for path, module in model.named_modules():
        name = type(module).__name__
        where = f"module {path}" if path else "the model"
        if name in ("DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"):
            raise UnsupportedError(
                f"{where} is a {name}, which keeps the sizes of the parameters that it was made with "
                "(grow the model inside, with its optimizer, and wrap it again)"
            )
        if name.startswith("FSDP") and hasattr(module, "unshard"):
            raise UnsupportedError(
                f"{where} is sharded by fully_shard, which keeps the sizes of its parameters "
                "(save a distributed checkpoint, expand it with coppice-dcp, and load it into a model with more experts)"
            )


def reset_compiled(model: nn.Module) -> None:
    """Forget what torch.compile made for the shapes before."""
    if is_compiled(model):
        torch.compiler.reset()
