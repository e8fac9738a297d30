"""Where the tensor of one expert is, among those of a layer's experts."""

from __future__ import annotations

from torch import Tensor

from coppice.grow_tensors import is_flat
from coppice.modules.site import Packed, Separate, Site
from coppice.regions import Box, whole
from coppice.wrappers import plain_path


class Stack:
    """The tensors of a layer's experts that have one role: one for all experts, or one for each.

    Attributes
    ----------
    paths : list of str
        Of the one, or of each.
    one : tuple of int
        The shape of one expert's tensor.
    """

    def __init__(self, experts: Packed | Separate, number: int) -> None:
        self.matrices = experts.matrices
        self.packed = isinstance(experts, Packed)
        self.places = [experts.place] if isinstance(experts, Packed) else experts.places
        self.paths = [plain_path(place.path) for place in self.places]
        shape = tuple(self.places[0].tensor.shape)
        self._flat = self.packed and is_flat(self.places[0].tensor, self.matrices, number)
        if self._flat:
            self.one: tuple[int, ...] = (shape[0] // number, *shape[1:])
        else:
            self.one = shape[1:] if self.packed else shape

    def shape(self, one: tuple[int, ...], number: int) -> tuple[int, ...]:
        """The shape of a tensor like these, for experts with this shape."""
        if self._flat:
            return (number * one[0], *one[1:])
        return (number, *one) if self.packed else one

    def place(self, expert: int) -> tuple[str, Box]:
        """The tensor that has an expert, and which part of it is the expert's."""
        if not self.packed:
            return self.paths[expert], whole(self.one)
        rows = self.one[0] if self._flat else 1
        rest = self.one[1:] if self._flat else self.one
        return self.paths[0], ((expert * rows, (expert + 1) * rows), *whole(rest))

    def one_of(self, part: Tensor) -> Tensor:
        """The expert's tensor, of its part of the tensor that has it."""
        return part[0] if self.packed and not self._flat else part


def stacks_of(site: Site, number: int) -> list[Stack]:
    """Those of a layer."""
    return [Stack(experts, number) for experts in site.experts]
