"""For transformers: a callback that expands the Trainer's model in mid-run, and configurations of larger models."""

from __future__ import annotations

import copy
import inspect
import json
import logging
from typing import Any

import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from coppice import _core
from coppice.describe import config_json, describe
from coppice.errors import UnsupportedError, UsageError, a_type, check_count
from coppice.growth import check_expansion, expand_
from coppice.growth_plan import GrowthPlan
from coppice.growth_plan import plan as make_plan
from coppice.modules.transformers import config_differences
from coppice.preparation import Growth
from coppice.watching import Scores, watch

__all__ = ["GrowthCallback", "grown_config"]

_log = logging.getLogger(__name__)
_OF_SCORES = ("select", "temperature", "metric", "layer_selection", "max_duplicates", "recipe")


def grown_config(model: PreTrainedModel | PreTrainedConfig, plan: GrowthPlan) -> PreTrainedConfig:
    """A copy of a model's configuration with the experts of the plan, to make a model that `expand_into` fills.

    Parameters
    ----------
    model : model or configuration
        A configuration is enough where it says which layers have experts; nllb_moe and
        others like it need the model.

    Raises
    ------
    UsageError
        The plan is for another model.
    """
    config: Any = getattr(model, "config", model)
    out: PreTrainedConfig = copy.deepcopy(config)
    after = json.loads(_core.PlanOfModel(plan.to_json(), describe(model), True).grown_config())
    for number in config_differences(out, config_json(out), after):
        setattr(number.owner, number.name, number.after)
    return out


class GrowthCallback(TrainerCallback):
    """Expands the Trainer's model and its optimizer behind a step; training goes on.

    ``Trainer(..., callbacks=[GrowthCallback(at_step=1000, experts="2x")])``. A checkpoint
    that the Trainer saves afterwards has the expanded model; resume it from a model that
    was loaded from that checkpoint.

    Parameters
    ----------
    at_step : int
        The growth comes behind this optimizer step, counted from 1 as the Trainer does.
    plan : GrowthPlan, optional
        A plan made beforehand; otherwise one is made at the growth, with `options`.
    score_steps : int
        Watch the gradients of so many steps before the growth and choose parents by
        them; 0 for none.
    **options
        Of `coppice.plan`: ``experts="2x"``, ``select=...`` ...

    Attributes
    ----------
    growth : Growth or None
        What was done.
    used_plan : GrowthPlan or None
        The plan that was carried out.
    """

    def __init__(self, at_step: int, *, plan: GrowthPlan | None = None, score_steps: int = 0, **options: Any) -> None:
        check_count("at_step", at_step, 1, "a step from 1 on")
        check_count("score_steps", score_steps, 0, f"0 to at_step, {at_step}")
        if score_steps > at_step:
            raise UsageError(f"score_steps: {score_steps}; wanted 0 to at_step, {at_step}")
        if plan is not None and not isinstance(plan, GrowthPlan):
            raise UsageError(f"plan: {a_type(plan)}; wanted what coppice.plan or GrowthPlan.load returns")
        unknown = options.keys() - (inspect.signature(make_plan).parameters.keys() - {"model", "scores"})
        if unknown:
            raise UsageError(f"{', '.join(sorted(unknown))}: no option of coppice.plan (see help(coppice.plan))")
        if plan is not None and (options or score_steps):
            given = ", ".join([*options, *(["score_steps"] if score_steps else [])])
            raise UsageError(f"{given}: it has no effect here; the plan decides it (leave it out)")
        self.at_step, self.plan, self.score_steps, self.options = at_step, plan, score_steps, options
        self.growth: Growth | None = None
        self.used_plan: GrowthPlan | None = None
        self._scores: Scores | None = None
        self._early: GrowthPlan | None = None  # checked before the growth

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse runs that the callback cannot grow, before any step: they may be long."""
        if args.world_size > 1:
            raise UnsupportedError(
                f"GrowthCallback: the Trainer runs on {args.world_size} processes, whose wrapper keeps the sizes of "
                "parameters (save a checkpoint, expand it with `coppice expand`, and go on from there)"
            )
        if state.max_steps < self.at_step:
            raise UsageError(f"at_step: {self.at_step}; the run has {state.max_steps} steps")
        model, of_scores = kwargs["model"], _OF_SCORES if self.score_steps else ()
        self._early = self.plan or make_plan(model, **{k: v for k, v in self.options.items() if k not in of_scores})
        check_expansion(model, self._early)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to watch, `score_steps` before the growth."""
        if self.score_steps and self.growth is None and state.global_step == self.at_step - self.score_steps:
            self._scores = watch(kwargs["model"], passes=None, gradients="local").__enter__()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One optimizer step is one batch of the scores."""
        if self._scores is not None:
            self._scores.end_batch()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Grow behind the step; behind the first one, see whether the optimizer's state can follow."""
        if self._early is not None and self.growth is None:
            check_expansion(kwargs["model"], self._early, kwargs["optimizer"])
            self._early = None
        if state.global_step != self.at_step or self.growth is not None:
            return
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        scores = self._scores
        if scores is not None:
            self._scores = None
            scores.__exit__(None, None, None)
        self.used_plan = self.plan or make_plan(model, scores=scores, **self.options)
        self.growth = expand_(model, self.used_plan, optimizer=optimizer)
        if args.torch_compile:
            torch.compiler.reset()
        before, after = self.growth.experts
        _log.info("coppice: %d -> %d experts behind step %d", before, after, self.at_step)
