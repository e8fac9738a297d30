"""Several processes: the same plan on all, and a change on all or on none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from coppice.errors import PeerError, UsageError


def _distributed() -> Any:
    import torch.distributed as dist

    return dist if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else None


def all_or_none(step: Callable[[], None]) -> None:
    """Run `step` on every rank; if it raises on any, every rank raises.

    Ranks: collective over the default group; `step` must call the same collectives on all.

    Raises
    ------
    PeerError
        Only another rank failed; the message says which and why.
    """
    mine: BaseException | None = None
    try:
        step()
    except BaseException as error:
        mine = error
    raise_on_all(mine)


def raise_on_all(mine: BaseException | None) -> None:
    """Raise on every rank if any rank has an error: this rank's own, if it has one.

    Ranks: collective over the default group.

    Raises
    ------
    PeerError
        Only another rank has one; the message says which and why.
    """
    reasons = gathered(None if mine is None else f"{type(mine).__name__}: {mine}")
    if mine is not None:
        raise mine
    for rank, reason in enumerate(reasons):
        if reason is not None:
            raise PeerError(f"rank {rank} failed, so no rank changed its model: {reason}")


def refuse_different_plans(plan: str) -> None:
    """Check that all ranks have the same plan.

    Raises
    ------
    UsageError
        They differ; the message names the ranks.
    """
    digests = gathered(hashlib.sha256(plan.encode()).hexdigest())
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise UsageError(
            f"plan: ranks {', '.join(map(str, others))} have another plan than rank 0 "
            "(make it on one rank and broadcast it, or make it from the same scores and seed)"
        )


def gathered(value: Any) -> list[Any]:
    """The values of all ranks of the default group, in their order."""
    dist = _distributed()
    if dist is None:
        return [value]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out


def this_rank() -> int:
    """The number of this rank in the default group."""
    dist = _distributed()
    return 0 if dist is None else dist.get_rank()


def ranks_of(group: Any) -> tuple[int, int]:
    """Number of ranks of a group, and this rank's place; None is a group of one."""
    return (1, 0) if group is None else (group.size(), group.rank())


def collective_device(group: Any = None) -> str:
    """The type of device whose tensors a group can pass on."""
    import torch.distributed as dist

    backends = [entry.split(":") for entry in dist.get_backend_config(group).split(",")]
    return next((device for device, backend in backends if device != "cpu" and backend not in ("gloo", "mpi")), "cpu")


def broadcast(tensor: Any, owner: int, group: Any) -> None:
    """Give all ranks of a group the tensor of the rank with this place in it."""
    import torch.distributed as dist

    moved = tensor.to(collective_device(group)).contiguous()
    dist.broadcast(moved, dist.get_global_rank(group, owner), group=group)
    if moved is not tensor:
        tensor.copy_(moved)


def broadcast_bytes(buffer: Any, owner: int) -> None:
    """Give all ranks of the default group this rank's bytes; they lie on a `collective_device`."""
    import torch.distributed as dist

    dist.broadcast(buffer, owner)


def union_over_ranks(names: set[str], group: Any) -> list[str]:
    """The names that any rank of a group has, in the same order on all."""
    import torch.distributed as dist

    everywhere: list[set[str]] = [set()] * group.size()
    dist.all_gather_object(everywhere, names, group=group)
    return sorted(set().union(*everywhere))
