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
    dist = _distributed()
    if dist is None:
        step()
        return
    mine: BaseException | None = None
    try:
        step()
    except BaseException as error:
        mine = error
    reasons: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, None if mine is None else f"{type(mine).__name__}: {mine}")
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
    dist = _distributed()
    if dist is None:
        return
    digests: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(digests, hashlib.sha256(plan.encode()).hexdigest())
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise UsageError(
            f"plan: ranks {', '.join(map(str, others))} have another plan than rank 0 "
            "(make it on one rank and broadcast it, or make it from the same scores and seed)"
        )




def ranks_of(group: Any) -> tuple[int, int]:
    """Number of ranks of a group, and this rank's place; None is a group of one."""
    return (1, 0) if group is None else (group.size(), group.rank())


def broadcast(tensor: Any, owner: int, group: Any) -> None:
    """Give all ranks of a group the tensor of the rank with this place in it."""
    import torch.distributed as dist

    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    moved = tensor.to(device).contiguous()
    dist.broadcast(moved, dist.get_global_rank(group, owner), group=group)
    if moved is not tensor:
        tensor.copy_(moved)


def union_over_ranks(names: set[str], group: Any) -> list[str]:
    """The names that any rank of a group has, in the same order on all."""
    import torch.distributed as dist

    everywhere: list[set[str]] = [set()] * group.size()
    dist.all_gather_object(everywhere, names, group=group)
    return sorted(set().union(*everywhere))
