"""One layer with experts as its modules hold it: what every layout describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

# A matrix of one expert, [out, in] (a bias: [out]), with its role's name.
RoleView = tuple[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Matrices:
    """Which matrices the tensor of one expert has, and how they lie in it.

    Attributes
    ----------
    role : str
        ``expert_gate``, ``expert_up``, ``expert_down``, ``expert_gate_up`` (gate and up
        in one tensor), the same with ``_bias``; ``copied`` if no method may change it.
    transposed : bool
        Each matrix is [in, out].
    interleaved : bool
        Rows of gate and up alternate, gate first; otherwise gate is the first half.
    """

    role: str
    transposed: bool = False
    interleaved: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the roles of its matrices."""
        if self.role.startswith("expert_gate_up"):
            ending = self.role.removeprefix("expert_gate_up")
            return (f"expert_gate{ending}", f"expert_up{ending}")
        return () if self.role == "copied" else (self.role,)

    def views(self, tensor: Tensor) -> list[RoleView]:
        """The matrices of one expert's tensor, without copying."""
        matrix = tensor.T if self.transposed and tensor.dim() == 2 else tensor
        roles = self.roles
        if len(roles) < 2:
            return [(role, matrix) for role in roles]
        if self.interleaved:
            return [(roles[0], matrix[0::2]), (roles[1], matrix[1::2])]
        half = matrix.shape[0] // 2
        return [(roles[0], matrix[:half]), (roles[1], matrix[half:])]

    def shape_after(self, shape: Sequence[int], split: int) -> tuple[int, ...]:
        """The shape of one expert's tensor when each expert is cut into `split` parts."""
        out = list(shape)
        if split > 1 and self.role not in ("copied", "expert_down_bias"):
            rows_first = len(out) == 1 or self.transposed == (self.role == "expert_down")
            out[0 if rows_first else 1] //= split
        return tuple(out)


@dataclasses.dataclass(frozen=True)
class Place:
    """A parameter or buffer: the module that holds it, and its name there."""

    module: nn.Module
    name: str
    path: str

    @property
    def tensor(self) -> Tensor:
        """What lies there now."""
        found: Tensor = getattr(self.module, self.name)
        return found


@dataclasses.dataclass
class Packed:
    """One parameter with the tensors of all experts, along its first dimension."""

    place: Place
    matrices: Matrices


@dataclasses.dataclass
class Separate:
    """One parameter for each expert; `places` in the order of the experts."""

    places: list[Place]
    matrices: Matrices


@dataclasses.dataclass
class Rows:
    """A tensor with a row, or a value, for each expert.

    `role` is ``router``, ``router_bias`` or ``selection_bias``; ``rows`` if a copy
    always has its parent's; ``counter`` if it starts at 0. `trailing` rows behind those
    of the experts, for other choices, stay.
    """

    place: Place
    role: str
    trailing: int = 0


@dataclasses.dataclass
class Number:
    """A number that a module, or its configuration, keeps: ``owner.name`` is `before`."""

    owner: Any
    name: str
    before: Any
    after: Any


class Arrange(Protocol):
    """Puts new parameters of single experts into their modules."""

    def __call__(self, parents: Sequence[tuple[int, int]], made: list[list[nn.Parameter]]) -> Callable[[], None]:
        """`made[i]` are the parameters of child i, in the order of the site's sets; returns the way back."""


@dataclasses.dataclass
class Site:
    """A layer with experts."""

    path: str
    layer: int
    experts: list[Packed | Separate]
    rows: list[Rows]
    router: nn.Module | None = None
    read_routing: Callable[[nn.Module, Any], tuple[Tensor, Tensor] | None] | None = None
    """From the router and what its forward pass returns: chosen experts and gates before scaling, both [tokens, K]."""
    arrange: Arrange | None = None
    first_expert: int = 0
    """The number of the first of its experts; not 0 where they are divided over ranks."""
    group: Any = None
    """The process group that the experts are divided over, if there is one."""
    data_group: Any = None
    """The ranks that have the same experts, if they are not all."""

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Everything that grows, with its path."""
        out = []
        for experts in self.experts:
            places = [experts.place] if isinstance(experts, Packed) else experts.places
            out += [(place.path, place.tensor) for place in places]
        return out + [(rows.place.path, rows.place.tensor) for rows in self.rows]
