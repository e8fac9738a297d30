"""For torchtitan: its own configuration with the number of experts after an expansion."""

from __future__ import annotations

import copy
from typing import Any

from coppice.errors import UsageError, a_type
from coppice.growth_plan import GrowthPlan
from coppice.modules.torchtitan import config_changes, config_numbers

__all__ = ["grown_config"]


def grown_config(config: Any, plan: GrowthPlan) -> Any:
    """A copy of a model's configuration with the experts of the plan.

    `expand_` changes the configuration that the model itself keeps. This is for one that
    a model will be built from, to load a checkpoint that ``coppice-dcp`` expanded.

    Parameters
    ----------
    config : dataclass
        ``Model.Config`` of a torchtitan model.

    Raises
    ------
    UsageError
        It has no number of experts like the plan's.
    """
    out = copy.deepcopy(config)
    changes = config_changes(*plan.experts, plan.top_k_factor)
    numbers = list(config_numbers(out, changes))
    if not numbers:
        raise UsageError(
            f"config: {a_type(config)} without num_experts = {plan.experts[0]}; "
            "wanted the configuration of the model that the plan is for"
        )
    for number in numbers:
        setattr(number.owner, number.name, number.after)
    return out
