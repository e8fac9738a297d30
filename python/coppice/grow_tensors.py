"""Tensors of the expanded model, computed from those before by the functions that ``coppice expand`` calls.

Copies are torch's own; what a method computes goes through the host, one matrix at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from coppice import _core
from coppice.modules.site import Matrices, Rows

# The tensor of one original expert.
Originals = Callable[[int], Tensor]


def new_tensor(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An empty tensor with this shape, for a grown one: dtype and device of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def by_expert(tensor: Tensor, matrices: Matrices, experts: int) -> Tensor:
    """A packed tensor with the experts as its first dimension (some are [experts * out, in])."""
    if not is_flat(tensor, matrices, experts):
        return tensor
    found: Tensor = tensor.unflatten(0, (experts, -1))  # type: ignore[no-untyped-call]
    return found


def is_flat(tensor: Tensor, matrices: Matrices, experts: int) -> bool:
    """Whether a packed tensor is [experts * out, in]."""
    is_vector = matrices.role.endswith("_bias")
    return tensor.dim() == 2 and not is_vector and tensor.shape[0] != experts


class TensorGrower:
    """Makes tensors of one layer by a plan.

    Parameters
    ----------
    plan : _core.PlanOfModel
    optimizer_state : str
        The plan's method for moments.
    """

    def __init__(self, plan: _core.PlanOfModel, optimizer_state: str) -> None:
        self.plan = plan
        self.resets = optimizer_state.partition(":")[0] == "reset"
        self._children: dict[int, list[tuple[int, int]]] = {}

    def children(self, layer: int) -> list[tuple[int, int]]:
        """Parent and copy number of every expert of the new layer."""
        if layer not in self._children:
            self._children[layer] = self.plan.children(layer)
        return self._children[layer]

    def originals_at(self, layer: int) -> list[int]:
        """Where each original expert is in the new layer."""
        at = {parent: child for child, (parent, copy) in enumerate(self.children(layer)) if copy == 0}
        return [at[expert] for expert in range(self.plan.experts_before)]

    def copies(self, layer: int, child: int, matrices: Matrices) -> bool:
        """Whether a child's tensor has its parent's bytes."""
        return all(self.plan.copies_expert(layer, child, role) for role in matrices.roles)

    def only_copies(self, layer: int, matrices: Matrices) -> bool:
        """Whether all children have their parents' bytes."""
        return all(self.copies(layer, child, matrices) for child in range(self.plan.experts_after))

    def copies_moment(self, layer: int, child: int, matrices: Matrices) -> bool:
        """Whether a child's moments have its parent's bytes."""
        return self.plan.copies_moment(layer, child) or (not matrices.roles and not self.resets)

    def zeroes_moment(self, layer: int, child: int) -> bool:
        """Whether a child starts from zero moments."""
        return self.resets and self.children(layer)[child][1] > 0

    def sources(self, layer: int, child: int) -> set[int]:
        """The originals that a child's weights are computed from, where they are not copied."""
        return set(self.plan.sources(layer, child))

    def moment_sources(self, layer: int, child: int) -> set[int]:
        """The originals that a child's moments are computed from; its weights' sources come to that."""
        parent = self.children(layer)[child][0]
        return self.sources(layer, child) | {(parent + 1) % self.plan.experts_before}

    def keeps_originals(self, layer: int, matrices: Matrices) -> bool:
        """Whether the original experts keep their bytes."""
        return all(self.copies(layer, child, matrices) for child in self.originals_at(layer))

    def shape_after(self, one: Sequence[int], matrices: Matrices) -> tuple[int, ...]:
        """The shape of a child's tensor."""
        return matrices.shape_after(one, self.plan.split)

    def fill_all(
        self,
        layer: int,
        before: Tensor,
        out: Tensor,
        copies: Callable[[int], bool],
        fill: Callable[[int, Tensor], None],
    ) -> None:
        """Set every child of a packed tensor: runs of neighbours that are copied at once, the others by `fill`."""
        parents = [parent for parent, _ in self.children(layer)]
        child = 0
        while child < len(parents):
            if not copies(child):
                fill(child, out[child])
                child += 1
                continue
            end = child + 1
            while end < len(parents) and parents[end] == parents[end - 1] + 1 and copies(end):
                end += 1
            out[child:end].copy_(before[parents[child] : parents[child] + end - child])
            child = end

    def fill_child(self, layer: int, child: int, matrices: Matrices, originals: Originals, out: Tensor) -> None:
        """Set `out` to the child's weights."""
        if self.copies(layer, child, matrices):
            out.copy_(originals(self.children(layer)[child][0]))
            return
        sources = {expert: dict(matrices.views(_on_host(originals(expert)))) for expert in self.sources(layer, child)}
        for role, view in matrices.views(out):
            before = {expert: views[role] for expert, views in sources.items()}
            made = view if _is_host(view) else torch.empty(view.shape, dtype=view.dtype)
            self.plan.grow_expert(layer, child, role, before, made)
            if made is not view:
                view.copy_(made)

    def fill_moment(
        self,
        layer: int,
        child: int,
        matrices: Matrices,
        kind: str,
        moments: Originals,
        weights: Originals,
        out: Tensor,
    ) -> None:
        """Set `out` to a moment of the child; `kind` is ``exp_avg`` or ``exp_avg_sq``."""
        if self.copies_moment(layer, child, matrices):
            out.copy_(moments(self.children(layer)[child][0]))
            return
        if self.zeroes_moment(layer, child):
            out.zero_()
            return
        nearby, sources = self.moment_sources(layer, child), self.sources(layer, child)
        states = {expert: dict(matrices.views(_on_host(moments(expert)))) for expert in nearby}
        values = {expert: dict(matrices.views(_on_host(weights(expert)))) for expert in sources}
        for role, view in matrices.views(out):
            made = torch.empty(view.shape, dtype=torch.float32)
            self.plan.grow_expert_moment(
                layer,
                child,
                role,
                kind,
                {expert: views[role] for expert, views in states.items()},
                {expert: views[role] for expert, views in values.items()},
                made,
            )
            view.copy_(made)

    def other_state(self, layer: int, child: int, key: str, value: Any) -> Any:
        """What a single expert's parameter has of its parent's state that is no tensor of its shape."""
        if key == "step":
            step = self.plan.step(layer, child, int(value))
            return torch.full_like(value, step) if isinstance(value, Tensor) else step
        return value.clone() if isinstance(value, Tensor) else value

    def rows(self, layer: int, rows: Rows, before: Tensor, like: Tensor) -> Tensor:
        """A tensor with a row for each expert, after; of dtype and device of `like`."""

        def fill(experts: Tensor, out: Tensor) -> None:
            if rows.role == "counter":
                out.zero_()
            elif rows.role == "rows":
                self._spread(layer, experts, out)
            else:
                made = torch.empty(out.shape, dtype=experts.dtype)
                self.plan.grow_router(layer, rows.role, _on_host(experts), made)
                out.copy_(made)

        return self._with_rows(rows, before, like, fill)

    def rows_moment(self, layer: int, rows: Rows, kind: str, before: Tensor) -> Tensor:
        """A moment of such a tensor."""

        def fill(experts: Tensor, out: Tensor) -> None:
            if rows.role in ("rows", "counter"):
                self._spread(layer, experts, out)
                return
            made = torch.empty(out.shape, dtype=torch.float32)
            self.plan.grow_router_moment(layer, kind, _on_host(experts), made)
            out.copy_(made)

        return self._with_rows(rows, before, before, fill)

    def _with_rows(self, rows: Rows, before: Tensor, like: Tensor, fill: Callable[[Tensor, Tensor], None]) -> Tensor:
        one_row = before.dim() == 2 and before.shape[0] == 1  # [1, experts]
        flat = before[0] if one_row else before
        out = new_tensor((self.plan.experts_after + rows.trailing, *flat.shape[1:]), like)
        fill(flat[: self.plan.experts_before], out[: self.plan.experts_after])
        if rows.trailing:
            out[self.plan.experts_after :] = flat[self.plan.experts_before :]
        return out.unsqueeze(0) if one_row else out

    def _spread(self, layer: int, before: Tensor, out: Tensor) -> None:
        for child, (parent, _) in enumerate(self.children(layer)):
            out[child] = before[parent]


def _is_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()
