"""The state of torch optimizers: which of its tensors are moments, and how parameters join their groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coppice.errors import UnsupportedError, UsageError, a_type
from coppice.regions import is_sharded
from coppice.undo import Undo

# What tensors of an optimizer's state are, by their names: a first or second moment, or an fp32 master of the weights.
KINDS = {
    "exp_avg": "exp_avg",
    "momentum_buffer": "exp_avg",
    "grad_avg": "exp_avg",
    "exp_avg_sq": "exp_avg_sq",
    "max_exp_avg_sq": "exp_avg_sq",
    "exp_inf": "exp_avg_sq",
    "square_avg": "exp_avg_sq",
    "sum": "exp_avg_sq",
    "master": "master",
    "master_param": "master",
    "master_weight": "master",
}
# Methods that treat both moments alike, so that tensors of any name can follow them.
_KIND_DOES_NOT_MATTER = ("copy", "reset")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor of the state that has its parameter's shape."""

    state: dict[str, Any]
    key: str
    kind: str

    @property
    def tensor(self) -> Tensor:
        """The tensor now."""
        found: Tensor = self.state[self.key]
        return found


class OptimizerStates:
    """The states of some optimizers by parameter.

    Parameters
    ----------
    optimizers : optimizer, or a sequence of them, or None
    method : str
        The plan's method for moments.
    """

    def __init__(self, optimizers: Any, method: str) -> None:
        if optimizers is None:
            optimizers = []
        given = list(optimizers) if isinstance(optimizers, Sequence) else [optimizers]
        # torchtitan's container of optimizers has groups of its own, and the state is in those inside.
        self.optimizers: list[torch.optim.Optimizer] = [
            inside for each in given for inside in getattr(each, "optimizers", [each])
        ]
        for optimizer in self.optimizers:
            if not (hasattr(optimizer, "state") and hasattr(optimizer, "param_groups")):
                raise UnsupportedError(
                    f"optimizer: {a_type(optimizer)} has no state and param_groups like those of "
                    "torch.optim.Optimizer (give the torch optimizer inside it)"
                )
        self._method = method.partition(":")[0]

    def check(self, grown: Iterable[tuple[str, Tensor]]) -> None:
        """Check the state of every parameter that grows.

        Raises
        ------
        UnsupportedError
            State that is neither of the parameter's shape nor one number, or whose kind is not known.
        UsageError
            No optimizer has any of the parameters.
        """
        parameters = [(path, p) for path, p in grown if isinstance(p, nn.Parameter) and p.requires_grad]
        for path, parameter in parameters:
            for state in self._states(parameter):
                for key, value in state.items():
                    self._check_value(path, parameter, key, value)
        if self.optimizers and parameters and not any(self.group_of(p) for _, p in parameters):
            names = ", ".join(type(optimizer).__name__ for optimizer in self.optimizers)
            raise UsageError(
                f"optimizer: {names} trains none of the model's experts and routers, such as {parameters[0][0]} "
                "(give the optimizer that trains this model)"
            )

    def _check_value(self, path: str, parameter: Tensor, key: str, value: Any) -> None:
        if value is None or isinstance(value, bool | int | float):
            return
        if isinstance(value, Tensor) and value.numel() == 1 and parameter.numel() != 1:
            return
        if not isinstance(value, Tensor):
            found = a_type(value)
        elif value.shape != parameter.shape:
            found = f"a tensor {list(value.shape)}, and the parameter is {list(parameter.shape)}"
        elif value.dtype not in _FLOATS or not _lies_as(value, parameter):
            found = f"{a_type(value)} of {value.dtype}" + _placed(value) + ", for a parameter" + _placed(parameter)
        elif key not in KINDS and self._method not in _KIND_DOES_NOT_MATTER:
            raise UnsupportedError(
                f"optimizer state '{key}' of {path}: it is not known whether it is a first or a second moment, which "
                f"'{self._method}' has to know; known are {', '.join(KINDS)} (plan with optimizer_state copy or reset)"
            )
        else:
            return
        raise UnsupportedError(
            f"optimizer state '{key}' of {path}: {found}; wanted numbers and float tensors with the parameter's shape, "
            "as AdamW has them (expand before the optimizer is made, or use an optimizer with such a state)"
        )

    def _states(self, parameter: Tensor) -> list[dict[str, Any]]:
        return [o.state[parameter] for o in self.optimizers if parameter in o.state]

    def entries(self, parameter: Tensor) -> list[Entry]:
        """The tensors with the parameter's shape, masters first."""
        out = []
        for state in self._states(parameter):
            for key, value in state.items():
                same = isinstance(value, Tensor) and value.shape == parameter.shape
                if same and (value.numel() > 1 or key in KINDS):
                    out.append(Entry(state, key, KINDS.get(key, "exp_avg")))
        return sorted(out, key=lambda entry: entry.kind != "master")

    def group_of(self, parameter: Tensor) -> tuple[torch.optim.Optimizer, dict[str, Any]] | None:
        """The optimizer and group that train a parameter."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if any(p is parameter for p in group["params"]):
                    return optimizer, group
        return None

    def of(self, parameter: Tensor) -> dict[str, Any] | None:
        """The state of a parameter, if it has one yet."""
        return next(iter(self._states(parameter)), None)

    def has_steps(self, parameters: Iterable[Tensor]) -> bool:
        """Whether any of them counts steps."""
        return any("step" in state for p in parameters for state in self._states(p))


def _lies_as(value: Tensor, parameter: Tensor) -> bool:
    """Whether a rank has the same part of a state as of its parameter."""
    if is_sharded(parameter) and is_sharded(value):
        return value.device_mesh == parameter.device_mesh and value.placements == parameter.placements
    return type(value) is Tensor and not is_sharded(parameter)


def _placed(tensor: Tensor) -> str:
    return f" with {tensor.placements}" if is_sharded(tensor) else " that is whole on a rank"


class Joiner:
    """Parameters of new experts join the groups of their parents."""

    def __init__(self, states: OptimizerStates, undo: Undo) -> None:
        self._states = states
        self._undo = undo
        self._new: dict[int, tuple[dict[str, Any], list[nn.Parameter]]] = {}
        self._gone: list[Tensor] = []

    def add(self, parent: Tensor, parameter: nn.Parameter, state: dict[str, Any] | None) -> None:
        """`state` is the new parameter's; None if its parent has none yet."""
        found = self._states.group_of(parent)
        if found is None:
            return
        optimizer, group = found
        self._new.setdefault(id(group), (group, []))[1].append(parameter)
        if state is not None:
            self._undo.set_item(optimizer.state, parameter, state)

    def remove(self, parameter: Tensor) -> None:
        """Another rank has the expert from now on."""
        found = self._states.group_of(parameter)
        if found is None:
            return
        optimizer, group = found
        self._new.setdefault(id(group), (group, []))
        self._gone.append(parameter)
        if parameter in optimizer.state:
            self._undo.delete_item(optimizer.state, parameter)

    def join(self, model: nn.Module) -> None:
        """Add them; a group that was in the model's order stays so."""
        gone = {id(parameter) for parameter in self._gone}
        place = {id(p): i for i, p in enumerate(model.parameters())}
        for group, new in self._new.values():
            before = [p for p in group["params"] if id(p) not in gone]
            order = [place.get(id(p), -1) for p in before]
            after = before + new
            if -1 not in order and order == sorted(order):
                after.sort(key=lambda p: place[id(p)])
            self._undo.set_item(group, "params", after)
