"""What is found out before an expansion in memory, and what it says afterwards."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from coppice import _core
from coppice.errors import UsageError, a_type
from coppice.grow_tensors import TensorGrower
from coppice.growth_plan import GrowthPlan
from coppice.modules import layout_of
from coppice.modules.site import Packed, Site
from coppice.optimizer import OptimizerStates


@dataclasses.dataclass(frozen=True)
class Growth:
    """What `expand_` or `expand_into` did.

    Attributes
    ----------
    experts : tuple of int
        Experts of a layer before and after.
    layers : list of int
        The layers that grew.
    parameters : tuple of int
        Number of the model's parameters before and after.
    notes : list of str
        What the user should know, one sentence each.
    """

    experts: tuple[int, int]
    layers: list[int]
    parameters: tuple[int, int]
    notes: list[str]


class Prepared:
    """A model with its layers of experts, a plan that fits it, and the states of its optimizer.

    Raises
    ------
    UnsupportedError
        Unknown modules, another kind of optimizer.
    UsageError
        The plan does not fit the model.
    """

    def __init__(self, model: nn.Module, plan: GrowthPlan, optimizer: Any, allow_regroup: bool) -> None:
        if not isinstance(plan, GrowthPlan):
            raise UsageError(f"plan: {a_type(plan)}; wanted what coppice.plan or GrowthPlan.load returns")
        self.layout = layout_of(model)
        self.description = self.layout.description(model)
        self.plan = _core.PlanOfModel(plan.to_json(), self.description, allow_regroup)
        self.sites = self.layout.sites(model)
        _check_layers(self.plan, self.sites)
        self.states = OptimizerStates(optimizer, plan.optimizer_state)
        self.grower = TensorGrower(self.plan, plan.optimizer_state)
        self._method = plan.optimizer_state

    def notes(self) -> list[str]:
        """What the user should know: packed parameters have one step count for all experts."""
        packed = [e.place.tensor for site in self.sites for e in site.experts if isinstance(e, Packed)]
        if self.plan.keeps_step or not self.states.has_steps(packed):
            return []
        return [
            f"optimizer_state '{self._method}' starts the step count of new experts at 0, but their "
            "parameters hold all experts of a layer with one count, which stays: their first updates are longer "
            "than a new parameter's where beta2 is near 1 (warm the learning rate up)"
        ]


def _check_layers(plan: _core.PlanOfModel, sites: list[Site]) -> None:
    """A part of a model, such as a pipeline stage, has some of the plan's layers."""
    unknown = [site.layer for site in sites if site.layer not in plan.layers()]
    if unknown:
        raise UsageError(
            f"plan: it has no parents for layers {unknown}, which have experts (make the plan from this model with "
            "coppice.plan)"
        )
