"""Parts of tensors: which part of a tensor a rank has, and boxes to name parts with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from coppice.errors import UnsupportedError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# A part of a tensor: begin and end in each dimension.
Box = tuple[tuple[int, int], ...]


def whole(shape: Iterable[int]) -> Box:
    """All of a tensor with this shape."""
    return tuple((0, size) for size in shape)


def sizes(box: Box) -> tuple[int, ...]:
    """The shape of a part."""
    return tuple(end - begin for begin, end in box)


def count(box: Box) -> int:
    """Number of elements of a part."""
    return math.prod(sizes(box))


def overlap(a: Box, b: Box) -> Box | None:
    """What two parts have in common, if it is anything."""
    out = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    return out if all(begin < end for begin, end in out) else None


def contains(outer: Box, inner: Box) -> bool:
    """Whether one part has all of another."""
    return all(o[0] <= i[0] and i[1] <= o[1] for o, i in zip(outer, inner, strict=True))


def hull(boxes: list[Box]) -> Box:
    """The smallest part that has all of these."""
    return tuple((min(begin for begin, _ in d), max(end for _, end in d)) for d in zip(*boxes, strict=True))


def moved(box: Box, origin: Box, to: Box) -> Box:
    """A part of `origin` at the same place in `to`."""
    return tuple((b - o + t, e - o + t) for (b, e), (o, _), (t, _) in zip(box, origin, to, strict=True))


def cut(tensor: Tensor, has: Box, box: Box) -> Tensor:
    """A part of a tensor, without copying, where `tensor` is the part `has` of the whole."""
    for dim, ((begin, end), (first, _)) in enumerate(zip(box, has, strict=True)):
        tensor = tensor.narrow(dim, begin - first, end - begin)
    return tensor


def joined(boxes: Iterable[Box]) -> list[Box]:
    """The same parts in order, neighbours along the first dimension as one."""
    out: list[Box] = []
    for box in sorted(set(boxes)):
        if out and box and out[-1][1:] == box[1:] and out[-1][0][1] >= box[0][0]:
            out[-1] = ((out[-1][0][0], max(out[-1][0][1], box[0][1])), *box[1:])
        else:
            out.append(box)
    return out


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Whether it is a DTensor: each rank has a part of it."""
    if type(tensor) is Tensor or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor: its own memory, without gradients."""
    detached = tensor.detach()
    return detached.to_local() if is_sharded(detached) else detached


def part_here(path: str, tensor: Tensor) -> Box:
    """Which part of a tensor this rank has.

    Raises
    ------
    UnsupportedError
        A DTensor that does not have one part here, such as one whose sums are still to be made.
    """
    if not is_sharded(tensor):
        return whole(tensor.shape)
    if any(placement.is_partial() for placement in tensor.placements):
        raise UnsupportedError(f"{path}: its values are parts of sums over ranks (Partial); wanted Shard or Replicate")
    # As torch.distributed.checkpoint asks for it.
    (chunk,) = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]
    box = tuple((begin, begin + size) for begin, size in zip(chunk.offsets, chunk.sizes, strict=True))
    shape = local(tensor).shape
    if count(box) == 0:
        return tuple((0, 0) for _ in tensor.shape)
    if sizes(box) != tuple(shape):
        raise UnsupportedError(
            f"{path}: this rank holds {list(shape)} of it, and its placements {tensor.placements} say "
            f"{list(sizes(box))} (shard it with fully_shard, parallelize_module or distribute_tensor)"
        )
    return box
