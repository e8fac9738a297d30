"""What must hold before a model's tensors are replaced."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coppice.errors import ShapeError, UnsupportedError, a_type
from coppice.modules.site import Packed, Site

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_tensors(model: nn.Module, sites: list[Site], experts: int) -> None:
    """Check dtype, kind, number of experts and ties of everything that grows.

    Raises
    ------
    UnsupportedError
        A quantised parameter, a tensor of another class, one without values, tied experts.
    ShapeError
        Another number of experts than the configuration says.
    """
    for site in sites:
        for path, tensor in site.tensors():
            _check_kind(path, tensor)
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


def _check_kind(path: str, tensor: Tensor) -> None:
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        raise UnsupportedError(
            f"{path}: {a_type(tensor)}; wanted a plain torch tensor "
            "(quantised and sharded parameters are expanded on disk: coppice expand, coppice-dcp)"
        )
    if tensor.device.type == "meta":
        raise UnsupportedError(f"{path}: it is on the meta device and has no values (load the weights first)")
    if isinstance(tensor, nn.Parameter) and tensor.dtype not in _FLOATS:
        raise UnsupportedError(
            f"{path}: its values are {tensor.dtype}; wanted float32, bfloat16 or float16 "
            "(quantised experts are expanded on disk: coppice expand, perhaps with --dequantize)"
        )


def _refuse_ties(model: nn.Module, grown: set[str]) -> None:
    """Two names for memory that grows: growing one would part them."""
    spans = []
    for path, tensor in model.named_parameters(remove_duplicate=False):
        local = getattr(tensor, "_local_tensor", tensor)
        if local.device.type != "meta" and local.numel() > 0:
            begin = local.data_ptr()
            spans.append((str(local.device), begin, begin + local.numel() * local.element_size(), path))
    spans.sort()
    for (device, _, end, path), (next_device, begin, _, other) in zip(spans, spans[1:], strict=False):
        if device == next_device and begin < end and (path in grown or other in grown):
            raise UnsupportedError(
                f"{path} and {other} are tied: they share memory; growing one would part them "
                "(untie them first, by giving one a copy of the values)"
            )
