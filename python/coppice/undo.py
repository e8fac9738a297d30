"""A list of steps back, for a change that is made whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from types import TracebackType

import torch
from torch import Tensor


class Undo:
    """As a context: if the body raises, every step that was added is undone, the last one first."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] = []

    def add(self, step: Callable[[], None]) -> None:
        """Remember how to undo what has just been done."""
        self._steps.append(step)

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            while self._steps:
                self._steps.pop()()
        self._steps.clear()

    def set_attribute(self, owner: object, name: str, value: object) -> None:
        """``owner.name = value``."""
        before = getattr(owner, name)
        self.add(lambda: setattr(owner, name, before))
        setattr(owner, name, value)

    def set_item(self, owner: dict[Any, Any], key: object, value: object) -> None:
        """``owner[key] = value``."""
        if key in owner:
            before = owner[key]
            self.add(lambda: owner.__setitem__(key, before))
        else:
            self.add(lambda: owner.pop(key, None))
        owner[key] = value

    def delete_item(self, owner: dict[Any, Any], key: object) -> None:
        """``del owner[key]``."""
        before = owner.pop(key)
        self.add(lambda: owner.__setitem__(key, before))

    def set_data(self, tensor: Tensor, value: Tensor, before: Callable[[], Tensor] | None = None) -> None:
        """Give a parameter or buffer other values, of another shape; it stays the same object.

        Hooks, `requires_grad` and entries of optimizers stay. A gradient is dropped.

        Parameters
        ----------
        before : callable, optional
            Makes the values before again, so that they need not be kept. Not used for a
            part of a larger buffer, which stays in memory and is what goes back.
        """
        if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size():
            before = None
        grad = tensor.grad if tensor.is_leaf else None
        values = before or _kept(tensor.data)

        def back() -> None:
            put_data(tensor, values())
            if grad is not None:
                tensor.grad = grad

        if grad is not None:
            tensor.grad = None
        self.add(back)
        put_data(tensor, value)


def put_data(tensor: Tensor, value: Tensor) -> None:
    """``tensor.data = value``, where somebody may hold the node that sums the tensor's gradient.

    The node knows the tensor's shape, and torch makes a new one only if the dtype changes.
    """
    other = torch.float32 if tensor.dtype == torch.float64 else torch.float64
    tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = value


def _kept(data: Tensor) -> Callable[[], Tensor]:
    return lambda: data
