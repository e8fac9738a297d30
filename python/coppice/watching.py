"""Scores of experts from the gradients of somebody's own training."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from coppice import _core
from coppice.errors import UsageError, check_count
from coppice.modules import layout_of
from coppice.modules.site import Site
from coppice.optimizer import OptimizerStates
from coppice.ranks import collective_device
from coppice.regions import Box, cut, is_sharded, local, overlap, part_here
from coppice.stacks import stacks_of
from coppice.wrappers import reshard, without_ddp

_FC1 = ("expert_gate", "expert_up", "expert_gate_up")
_FC2 = ("expert_down",)


def watch(
    model: nn.Module,
    *,
    optimizer: Any = None,
    passes: int | None = 1,
    gradients: str = "local",
    group: Any = None,
) -> Scores:
    """Score experts from the backward passes in the body of a ``with`` statement.

    ``with coppice.watch(model) as scores:`` around any number of training steps; then
    ``coppice.plan(model, "2x", scores=scores)``. The metrics are those of
    ``coppice score``, except ``output_error``: it needs what each expert gave to each
    token, which no model hands out (run ``coppice score`` on a checkpoint for it). The
    gradient of a batch is summed over its backward passes and averaged over the ranks
    before it is squared.

    Memory: two to four fp32 copies of the gradients of experts, until the body ends.

    Ranks: collective; every rank watches the same number of backward passes.

    Parameters
    ----------
    optimizer : torch optimizer, or a list of them, optional
        Gives Adam's second moments for ``approx_fisher``; without it they are estimated
        from the batches.
    passes : int or None
        Backward passes of one batch (gradient accumulation). With None the body calls
        ``scores.end_batch()`` behind each batch, before the gradients are set to zero.
        Parameters with a `main_grad`, as Megatron Core's have, and DTensors, as those of
        fully_shard are, are read there; both need None. So does reentrant activation
        checkpointing, which runs a backward pass of its own for each part.
    gradients : str
        ``local`` if each rank has the gradient of its own tokens, ``reduced`` if what is
        read has been averaged over ranks before ``end_batch()``. Gradients of DTensors are
        taken as they are, reduced as the optimizer gets them.
    group : process group, optional
        The ranks with the same experts (default: those that the model names, or all).

    Raises
    ------
    UsageError
        An argument is not valid, or the body had no backward pass.
    UnsupportedError
        No layout knows the model.
    """
    if passes is not None:
        check_count("passes", passes, 1, "a number from 1 on, or None")
    if gradients not in ("local", "reduced"):
        raise UsageError(f"gradients: '{gradients}'; wanted local or reduced")
    return Scores(without_ddp(model), optimizer, passes, gradients == "local", group)


@dataclasses.dataclass
class _Sums:
    """One number for each expert and batch: its sum and sum of squares over batches."""

    sum: Tensor
    sum_sq: Tensor

    @classmethod
    def zeros(cls, experts: int) -> _Sums:
        return cls(torch.zeros(experts, dtype=torch.float64), torch.zeros(experts, dtype=torch.float64))

    def add(self, batch: Tensor) -> None:
        self.sum += batch
        self.sum_sq += batch * batch


class _Watched:
    """One parameter of experts: its gradient of this batch, and the sums over batches, of this rank's part of it.

    Parameters
    ----------
    experts : dict
        Their numbers in the layer, and which part of the parameter each is.
    """

    def __init__(self, path: str, parameter: Tensor, experts: dict[int, Box], squares: bool) -> None:
        self.parameter, self.experts = parameter, list(experts)
        self._boxes, self._part = list(experts.values()), part_here(path, parameter)
        self.batch: Tensor | None = None
        self.total = torch.zeros_like(local(parameter), dtype=torch.float32)
        self.squares = torch.zeros_like(self.total) if squares else None

    def add(self, gradient: Tensor) -> None:
        """Of one backward pass."""
        if self.batch is None:
            self.batch = gradient.detach().to(torch.float32, copy=True)
        else:
            self.batch += gradient.detach()

    def gradient(self) -> Tensor | None:
        """Of this batch: summed by `add`, or what lies at the parameter now."""
        if self.batch is not None or not _is_read_at_end(self.parameter):
            return self.batch
        if not is_sharded(self.parameter):
            found: Tensor | None = getattr(self.parameter, "main_grad", None)
            return found
        gradient: Any = self.parameter.grad
        if gradient is not None and gradient.placements != self.parameter.placements:
            gradient = gradient.redistribute(placements=self.parameter.placements)
        return None if gradient is None else local(gradient)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products by expert, of this rank's parts; summed over the ranks that have the other parts."""
        out = torch.zeros(len(self.experts), dtype=torch.float64)
        for i, box in enumerate(self._boxes):
            here = overlap(box, self._part)
            if here is not None:
                x, y = cut(a, self._part, here), cut(b, self._part, here)
                out[i] = (x.double() * y.double()).sum()
        for group in self._groups():
            out = _sum_over_ranks(out, group)
        return out

    def _groups(self) -> list[Any]:
        """Of the ranks that the parameter is divided over."""
        if not is_sharded(self.parameter):
            return []
        mesh, placements = self.parameter.device_mesh, self.parameter.placements
        return [mesh.get_group(axis) for axis, placement in enumerate(placements) if not placement.is_replicate()]


class _Linear:
    """One linear layer of all experts of a site: gate and up (fc1), or down (fc2)."""

    def __init__(self, watched: list[_Watched], experts: int) -> None:
        self.watched = watched
        self.norms = _Sums.zeros(experts)

    def spread(self, of_parameter: Callable[[_Watched], Tensor]) -> Tensor:
        """Sums over parameters, [experts of the layer]."""
        out = torch.zeros_like(self.norms.sum)
        for each in self.watched:
            out[each.experts] += of_parameter(each)
        return out


class _Routing:
    """What a router does, of the batch so far and over batches."""

    def __init__(self, experts: int) -> None:
        self.pairs, self.mass = (torch.zeros(experts, dtype=torch.float64) for _ in range(2))
        self.load, self.gate_mass = _Sums.zeros(experts), _Sums.zeros(experts)
        self.seen = False

    def add(self, chosen: Tensor, gates: Tensor) -> None:
        index = chosen.detach().reshape(-1).cpu()
        self.pairs.index_add_(0, index, torch.ones_like(index, dtype=torch.float64))
        self.mass.index_add_(0, index, gates.detach().reshape(-1).double().cpu())
        self.seen = True


class _Layer:
    """A site that is watched."""

    def __init__(self, site: Site, states: OptimizerStates, experts: int) -> None:
        self.site = site
        self.routing = _Routing(experts)
        self.linears = {
            "fc1": _Linear(list(_watched(site, _FC1, states, experts)), experts),
            "fc2": _Linear(list(_watched(site, _FC2, states, experts)), experts),
        }

    def parameters(self) -> Iterator[_Watched]:
        """Of both linear layers."""
        for linear in self.linears.values():
            yield from linear.watched


def _watched(site: Site, roles: tuple[str, ...], states: OptimizerStates, experts: int) -> Iterator[_Watched]:
    for stack in stacks_of(site, experts):
        if stack.matrices.role not in roles:
            continue
        for i, (path, place) in enumerate(zip(stack.paths, stack.places, strict=True)):
            parameter = place.tensor
            inside = range(experts) if stack.packed else [i]
            has_moment = any(entry.key == "exp_avg_sq" for entry in states.entries(parameter))
            boxes = {site.first_expert + expert: stack.place(expert)[1] for expert in inside}
            yield _Watched(path, parameter, boxes, squares=not has_moment)


class Scores:
    """What `watch` measures: a context; afterwards the scores of every expert."""

    def __init__(self, model: nn.Module, optimizer: Any, passes: int | None, local: bool, group: Any) -> None:
        reshard(model)
        layout = layout_of(model)
        self._facts = _core.model_facts(layout.description(model))
        self._states = OptimizerStates(optimizer, "copy")
        experts = self._facts["experts"]
        self._layers = [_Layer(site, self._states, experts) for site in layout.sites(model)]
        at_end = [_is_read_at_end(w.parameter) for layer in self._layers for w in layer.parameters()]
        if passes is not None and any(at_end):
            raise UsageError(
                "passes: the model's parameters have a main_grad, or are DTensors, whose gradients are read at the end "
                "of a batch (give passes=None, and call scores.end_batch() behind each batch, before gradients are set "
                "to zero)"
            )
        self._passes, self._local, self._group = passes, local, group
        self._handles: list[Any] = []
        self._task = -1
        self._passes_seen = 0
        self.batches = 0
        self._text: str | None = None

    def __enter__(self) -> Scores:
        for layer in self._layers:
            for watched in layer.parameters():
                if watched.parameter.requires_grad and not _is_read_at_end(watched.parameter):
                    handle = watched.parameter.register_hook(self._hook(watched))  # type: ignore[no-untyped-call]
                    self._handles.append(handle)
            if layer.site.router is not None and layer.site.read_routing is not None:
                self._handles.append(layer.site.router.register_forward_hook(self._router_hook(layer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if kind is None:
            self._text = self._finish()
        self._layers = []

    def _hook(self, watched: _Watched) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            task = torch._C._current_graph_task_id()
            if self._passes is not None and task != self._task:  # once for each backward pass, at its end
                self._task = task
                torch.autograd.Variable._execution_engine.queue_callback(self._end_pass)
            watched.add(gradient)

        return hook

    def _router_hook(self, layer: _Layer) -> Callable[..., None]:
        def hook(router: nn.Module, inputs: Any, output: Any) -> None:
            if torch._C._current_graph_task_id() != -1 or not torch.is_grad_enabled():
                return  # a forward pass that is repeated in the backward pass, or one without
            read = layer.site.read_routing
            found = read(router, output) if read is not None else None
            if found is not None:
                layer.routing.add(*found)

        return hook

    def _end_pass(self) -> None:
        self._task = -1
        self._passes_seen += 1
        if self._passes_seen == self._passes:
            self.end_batch()

    def end_batch(self) -> None:
        """End a batch; only to be called if `passes` is None.

        Raises
        ------
        UsageError
            No expert has a gradient.
        """
        self._passes_seen = 0
        parameters = [w for layer in self._layers for w in layer.parameters()]
        if all(w.batch is None and not _has_gradient(w.parameter) for w in parameters):
            raise UsageError("watch: no expert has a gradient (call end_batch() behind the backward passes of a batch)")
        with torch.no_grad():
            for layer in self._layers:
                for linear in layer.linears.values():
                    norm = torch.zeros_like(linear.norms.sum)
                    for watched in linear.watched:
                        norm[watched.experts] += self._end_parameter(layer, watched)
                    linear.norms.add(norm)
                self._end_routing(layer)
        self.batches += 1

    def _end_parameter(self, layer: _Layer, watched: _Watched) -> Tensor:
        """Adds the batch to the sums; returns squared norms by expert."""
        gradient = watched.gradient()
        if gradient is None:
            gradient = torch.zeros_like(watched.total)
        if self._local and not is_sharded(watched.parameter):
            gradient = _mean_over_ranks(gradient.float(), self._group or layer.site.data_group)
        gradient = gradient.float()
        watched.batch = None
        watched.total += gradient
        if watched.squares is not None:
            watched.squares.addcmul_(gradient, gradient)
        return watched.dot(gradient, gradient)

    def _end_routing(self, layer: _Layer) -> None:
        routing = layer.routing
        if not routing.seen:
            return
        both = _sum_over_ranks(torch.stack([routing.pairs, routing.mass]), self._group)
        routing.load.add(both[0] / both[0].sum())
        routing.gate_mass.add(both[1])
        routing.pairs.zero_()
        routing.mass.zero_()

    def _finish(self) -> str:
        if self._passes_seen:
            raise UsageError(
                f"watch: the body ended after {self._passes_seen} of the {self._passes} backward passes of a batch"
            )
        if self.batches == 0:
            raise UsageError("watch: the body had no backward pass through the experts")
        metrics: dict[str, Any] = {}
        with torch.no_grad():
            for layer in self._layers:
                for name, linear in layer.linears.items():
                    self._add_linear(metrics, name, layer, linear)
        second = "trainer" if all(w.squares is None for lay in self._layers for w in lay.parameters()) else "batches"
        self._layers = []
        return _core.checked_scores(
            json.dumps(
                {
                    "coppice_scores": 1,
                    "model": {"digest": "", **self._facts},
                    "tokens": {"digest": "", "seen": self.batches, "batch_tokens": 1, "batches": self.batches},
                    "second_moment": second,
                    "metrics": metrics,
                }
            )
        )

    def _add_linear(self, metrics: dict[str, Any], name: str, layer: _Layer, linear: _Linear) -> None:
        def weight(w: _Watched) -> Tensor:
            masters = [entry.tensor for entry in self._states.entries(w.parameter) if entry.kind == "master"]
            return local(masters[0] if masters else w.parameter)

        def moment(w: _Watched) -> Tensor:
            if w.squares is not None:
                return w.squares / self.batches
            return local(next(e.tensor for e in self._states.entries(w.parameter) if e.key == "exp_avg_sq"))

        mean = {id(w): w.total / self.batches for w in linear.watched}
        inputs = [
            linear.spread(lambda w: w.dot(weight(w), weight(w))),
            linear.spread(lambda w: w.dot(mean[id(w)], mean[id(w)])),
            linear.spread(lambda w: w.dot(weight(w), mean[id(w)])),
            linear.norms.sum,
            linear.spread(lambda w: w.dot(moment(w), moment(w))),
            linear.norms.sum_sq,
        ]
        if layer.site.group is not None:  # each rank has some of the layer's experts
            inputs = list(_sum_over_ranks(torch.stack(inputs), layer.site.group))
        weight_sq, grad_sq, weight_grad, norms, moment_sq, norms_sq = (each.tolist() for each in inputs)
        batch_sums = {"batch_fisher": (norms, norms_sq)}
        if layer.routing.seen:
            for metric in ("load", "gate_mass"):
                sums = getattr(layer.routing, metric)
                batch_sums[metric] = (sums.sum.tolist(), sums.sum_sq.tolist())
        number = str(layer.site.layer)
        for expert in range(len(weight_sq)):
            values = _core.metrics(
                weight_sq[expert], grad_sq[expert], weight_grad[expert], norms[expert], moment_sq[expert], self.batches
            )
            for metric, value in values.items():
                if metric not in batch_sums:
                    sums = metrics.setdefault(metric, {}).setdefault(name, {}).setdefault("sum", {})
                    sums.setdefault(number, []).append(value)
        for metric, (total, squares) in batch_sums.items():
            sums = metrics.setdefault(metric, {}).setdefault(name, {})
            sums.setdefault("sum", {})[number] = total
            sums.setdefault("sum_sq", {})[number] = squares

    def to_json(self) -> str:
        """The scores as ``scores.json`` has them.

        Raises
        ------
        UsageError
            The body has not ended, or it failed.
        """
        if self._text is None:
            raise UsageError("scores: there are none before the body of `with coppice.watch(...)` has ended")
        return self._text

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as JSON, for `plan`; ``coppice expand --scores`` refuses them, as of a model in memory."""
        pathlib.Path(path).write_text(self.to_json())


def _is_read_at_end(parameter: Tensor) -> bool:
    """Whether its gradient is read at the end of a batch, because backward passes do not hand it to a hook."""
    return getattr(parameter, "main_grad", None) is not None or is_sharded(parameter)


def _has_gradient(parameter: Tensor) -> bool:
    return getattr(parameter, "main_grad", None) is not None or (is_sharded(parameter) and parameter.grad is not None)


def _ranks(group: Any) -> int:
    dist = torch.distributed
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def _mean_over_ranks(tensor: Tensor, group: Any) -> Tensor:
    """In fp32, before anything is squared."""
    ranks = _ranks(group)
    if ranks == 1:
        return tensor
    out = tensor / ranks
    torch.distributed.all_reduce(out, group=group)
    return out


def _sum_over_ranks(tensor: Tensor, group: Any) -> Tensor:
    if _ranks(group) == 1:
        return tensor
    out = tensor.to(collective_device(group), copy=True)
    torch.distributed.all_reduce(out, group=group)
    return out.cpu()
