"""What must hold before a model's tensors are replaced."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coppice.errors import ShapeError, UnsupportedError, a_type
from coppice.modules.site import Packed, Site
from coppice.regions import is_sharded, local

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_tensors(model: nn.Module, sites: list[Site], experts: int, *, sharded: bool = False) -> None:
    """Check dtype, kind, number of experts and ties of everything that grows.

    Parameters
    ----------
    sharded : bool
        DTensors may be among them.

    Raises
    ------
    UnsupportedError
        A quantised parameter, a tensor of another class, one without values, tied experts.
    ShapeError
        Another number of experts than the configuration says.
    """
    for site in sites:
        for path, tensor in site.tensors():
            check_kind(path, tensor, sharded=sharded)
            _check_dtype(path, tensor)
        for tensor, what, trailing in _stacked(site):
            shape = tensor.shape
            rows = shape[1] if len(shape) == 2 and shape[0] == 1 else shape[0]
            flat = what.startswith("packed") and len(shape) == 2 and rows % experts == 0
            if rows != experts + trailing and not flat:
                raise ShapeError(
                    f"{what}: {list(shape)}; wanted {experts + trailing} in its first dimension, for {experts} experts"
                    + (f" and {trailing} other choices" if trailing else "")
                    + " (check that the module and its configuration agree)"
                )
    _refuse_ties(model, {path for site in sites for path, _ in site.tensors()})


def _stacked(site: Site) -> list[tuple[Tensor, str, int]]:
    packed = [(e.place.tensor, f"packed experts {e.place.path}", 0) for e in site.experts if isinstance(e, Packed)]
    return packed + [(rows.place.tensor, rows.place.path, rows.trailing) for rows in site.rows]


def check_kind(path: str, tensor: Tensor, *, sharded: bool) -> None:
    """Check that a tensor is a plain one, or perhaps a DTensor, and has values.

    Raises
    ------
    UnsupportedError
        It is not.
    """
    if is_sharded(tensor) and not sharded:
        raise UnsupportedError(
            f"{path}: a DTensor, of which each rank has a part; it cannot change its size (make a larger model as you "
            "made this one, and fill it with coppice.expand_into)"
        )
    kind = type(local(tensor)) if is_sharded(tensor) else type(tensor)
    if kind not in (Tensor, nn.Parameter, nn.Buffer):
        raise UnsupportedError(
            f"{path}: {a_type(local(tensor) if is_sharded(tensor) else tensor)}; wanted a plain torch tensor "
            "(quantised parameters are expanded on disk: coppice expand, coppice-dcp)"
        )
    if tensor.device.type == "meta":
        raise UnsupportedError(f"{path}: it is on the meta device and has no values (load the weights first)")


def _check_dtype(path: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter) and tensor.dtype not in _FLOATS:
        raise UnsupportedError(
            f"{path}: its values are {tensor.dtype}; wanted float32, bfloat16 or float16 "
            "(quantised experts are expanded on disk: coppice expand, perhaps with --dequantize)"
        )


def _refuse_ties(model: nn.Module, grown: set[str]) -> None:
    """Two names for memory that grows: growing one would part them."""
    spans = []
    for path, tensor in model.named_parameters(remove_duplicate=False):
        here = local(tensor)
        if here.device.type != "meta" and here.numel() > 0:
            begin = here.data_ptr()
            spans.append((str(here.device), begin, begin + here.numel() * here.element_size(), path))
    spans.sort()
    for (device, _, end, path), (next_device, begin, _, other) in zip(spans, spans[1:], strict=False):
        if device == next_device and begin < end and (path in grown or other in grown):
            raise UnsupportedError(
                f"{path} and {other} are tied: they share memory; growing one would part them "
                "(untie them first, by giving one a copy of the values)"
            )
