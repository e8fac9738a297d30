"""For Megatron Core: expand between two steps, with its wrapper and its optimizer made anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coppice.errors import UnsupportedError, UsageError, a_type
from coppice.growth import expand_
from coppice.growth_plan import GrowthPlan
from coppice.preparation import Growth
from coppice.undo import Undo, put_data

__all__ = ["Expanded", "expand_megatron"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclasses.dataclass(frozen=True)
class Expanded:
    """What training goes on with.

    Attributes
    ----------
    chunks : list of modules
        What `wrap` made.
    optimizer : Megatron optimizer
        What `make_optimizer` made, with the state of the old one.
    growths : list of Growth
        What was done to each chunk.
    """

    chunks: list[nn.Module]
    optimizer: Any
    growths: list[Growth]


def expand_megatron(
    chunks: nn.Module | Sequence[nn.Module],
    plan: GrowthPlan,
    *,
    optimizer: Any,
    wrap: Callable[[list[nn.Module]], list[nn.Module]],
    make_optimizer: Callable[[list[nn.Module]], Any],
) -> Expanded:
    """Expand a Megatron Core model between two steps.

    Megatron's DistributedDataParallel and its optimizers keep flat buffers with the sizes
    of their parameters. So the model inside is expanded in place, `wrap` and
    `make_optimizer`, which the training script has already, make both again, and master
    weights, moments, step counts and the settings of parameter groups are carried over.
    If anything fails, the old model, wrapper and optimizer are as they were.

    Drop the old wrapper and optimizer afterwards, and give a learning rate schedule the
    new one (``scheduler.optimizer = expanded.optimizer``).

    Memory: on the host, master weights and moments of this rank's model part, not
    sharded; on the device, the old and the new buffers until the old wrapper is dropped.

    Ranks: collective over the default group.

    Parameters
    ----------
    chunks : module, or a list of them
        Wrapped in Megatron's DistributedDataParallel, or not wrapped.
    plan : GrowthPlan
        From ``coppice.plan(chunks[0], "2x")``, the same on all ranks.
    optimizer : Megatron optimizer
        DistributedOptimizer, Float16OptimizerWithFloat16Params, FP32Optimizer, or a
        ChainedOptimizer of these.
    wrap, make_optimizer : callable
        Make the wrapped chunks of the modules inside, and the optimizer of those.

    Raises
    ------
    UnsupportedError
        Experts that are divided over ranks, or another kind of optimizer.
    UsageError
        `make_optimizer` made other parameter groups, or the plan does not fit.
    """
    old_chunks = list(chunks) if isinstance(chunks, Sequence) else [chunks]
    inner = [_unwrapped(chunk) for chunk in old_chunks]
    held = _Held(optimizer)
    growths: list[Growth] = []
    made: list[Any] = []

    def rebuild(undo: Undo) -> None:
        for model in inner:
            for parameter in model.parameters():
                _forget_old_wrapper(parameter, undo)
        wrapped = list(wrap(inner))
        new = make_optimizer(wrapped)
        held.write_to(new)
        made.extend((wrapped, new))

    def grow(index: int) -> None:
        last = index == len(inner) - 1
        then = rebuild if last else (lambda undo: grow(index + 1))
        growths.append(expand_(inner[index], plan, optimizer=held, then=then))

    try:
        grow(0)
    except BaseException:
        _restore_hooks(old_chunks)
        raise
    growths.reverse()
    return Expanded(made[0], made[1], growths)


def _unwrapped(chunk: Any) -> Any:
    return chunk.module if type(chunk).__name__ == "DistributedDataParallel" else chunk


def _forget_old_wrapper(parameter: Tensor, undo: Undo) -> None:
    """The new wrapper hangs its hooks on a new node, not beside those of the old one."""
    data, attributes = parameter.data, dict(parameter.__dict__)

    def back() -> None:
        put_data(parameter, data)
        parameter.__dict__.clear()
        parameter.__dict__.update(attributes)

    undo.add(back)
    put_data(parameter, data)
    for name in ("main_grad", "main_param", "grad_added_to_main_grad"):
        parameter.__dict__.pop(name, None)


def _restore_hooks(chunks: list[Any]) -> None:
    """Hang the hooks of the old wrapper on its parameters again."""
    for chunk in chunks:
        if not hasattr(chunk, "grad_accs"):
            continue
        chunk.grad_accs.clear()
        for parameter in chunk.module.parameters():
            if parameter.requires_grad:
                node: Any = parameter.expand_as(parameter).grad_fn
                node = node.next_functions[0][0]
                node.register_hook(chunk._make_backward_post_hook(parameter))
                chunk.grad_accs.append(node)


class _Held:
    """The state of a Megatron optimizer by model parameter, whole and on the host.

    It looks like a torch optimizer to `expand_`, which grows what it holds.
    """

    def __init__(self, optimizer: Any) -> None:
        self._parts = [_part_of(part) for part in getattr(optimizer, "chained_optimizers", [optimizer])]
        self._scalers = [getattr(part.optimizer, "grad_scaler", None) for part in self._parts]
        self.state: dict[Tensor, dict[str, Any]] = {}
        self.param_groups: list[dict[str, Any]] = []
        for part in self._parts:
            for settings, parameters in part.groups():
                self.param_groups.append({"params": parameters, "settings": settings})
            for parameter in part.parameters():
                state = part.read(parameter)
                if state:
                    self.state[parameter] = state

    def write_to(self, optimizer: Any) -> None:
        """Give a new optimizer what is held."""
        parts = [_part_of(part) for part in getattr(optimizer, "chained_optimizers", [optimizer])]
        found = [sum(1 for _ in part.groups()) for part in parts]
        wanted = [sum(1 for _ in part.groups()) for part in self._parts]
        if found != wanted:
            raise UsageError(
                f"make_optimizer: it made {found} parameter groups, and the old optimizer has {wanted} "
                "(make it with the same settings as the old one)"
            )
        for old, new, scaler in zip(self._parts, parts, self._scalers, strict=True):
            for parameter in new.parameters():
                new.write(parameter, self.state.get(parameter))
            for before, after in zip(old.torch_groups(), new.torch_groups(), strict=True):
                after.update({key: value for key, value in before.items() if key != "params"})
            if scaler is not None and getattr(new.optimizer, "grad_scaler", None) is not None:
                new.optimizer.grad_scaler.load_state_dict(scaler.state_dict())
            new.finish()


class _Part:
    """One Megatron optimizer around one torch optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def torch_groups(self) -> list[dict[str, Any]]:
        """The groups of the torch optimizer inside."""
        groups: list[dict[str, Any]] = self.optimizer.optimizer.param_groups
        return groups

    def groups(self) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
        """Settings and model parameters of each group."""
        for index, group in enumerate(self.torch_groups()):
            yield group, [p for p in self.parameters() if self.group_of(p) == index]

    def parameters(self) -> list[Tensor]:
        """The model parameters that it trains, in the same order on all ranks."""
        raise NotImplementedError

    def group_of(self, parameter: Tensor) -> int:
        """The index of a model parameter's group."""
        raise NotImplementedError

    def read(self, parameter: Tensor) -> dict[str, Any]:
        """Master and moments of a model parameter, whole."""
        raise NotImplementedError

    def write(self, parameter: Tensor, state: dict[str, Any] | None) -> None:
        """Set them."""
        raise NotImplementedError

    def finish(self) -> None:
        """When all are set."""


def _part_of(optimizer: Any) -> _Part:
    name = type(optimizer).__name__
    if name == "DistributedOptimizer":
        return _Distributed(optimizer)
    if name in ("Float16OptimizerWithFloat16Params", "FP32Optimizer"):
        return _Whole(optimizer)
    raise UnsupportedError(
        f"optimizer: {a_type(optimizer)}; wanted Megatron's DistributedOptimizer, Float16OptimizerWithFloat16Params or "
        "FP32Optimizer, or a ChainedOptimizer of these (with another one, save a checkpoint and expand it with "
        "coppice-dcp)"
    )


class _Whole(_Part):
    """Every rank has the whole state; fp16 and bf16 parameters have a master."""

    def _trained(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Group, model parameter, and what the torch optimizer trains for it."""
        if type(self.optimizer).__name__ == "FP32Optimizer":
            for index, group in enumerate(self.torch_groups()):
                for parameter in group["params"]:
                    yield index, parameter, parameter
            return
        for index, group in enumerate(self.torch_groups()):
            model = {id(main): p for p, main in self._pairs()}
            for main in group["params"]:
                yield index, model.get(id(main), main), main

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for low, full in zip(self.optimizer.float16_groups, self.optimizer.fp32_from_float16_groups, strict=True):
            yield from zip(low, full, strict=True)

    def parameters(self) -> list[Tensor]:
        return [parameter for _, parameter, _ in self._trained()]

    def group_of(self, parameter: Tensor) -> int:
        return next(index for index, p, _ in self._trained() if p is parameter)

    def _main(self, parameter: Tensor) -> Tensor:
        return next(main for _, p, main in self._trained() if p is parameter)

    def read(self, parameter: Tensor) -> dict[str, Any]:
        main = self._main(parameter)
        state = {k: _host(v) if isinstance(v, Tensor) else v for k, v in self.optimizer.optimizer.state[main].items()}
        return state if main is parameter else {"master": _host(main), **state}

    def write(self, parameter: Tensor, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        main = self._main(parameter)
        inner = self.optimizer.optimizer.state[main]
        for key, value in state.items():
            if key == "master":
                main.data.copy_(value)
            else:
                inner[key] = value.to(main.device) if isinstance(value, Tensor) and value.dim() else value


class _Distributed(_Part):
    """Every rank of the data-parallel group has a part of each flat buffer."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        steps = [float(state["step"]) for state in optimizer.optimizer.state.values() if "step" in state]
        self._step = torch.tensor(max(steps, default=0.0))
        if torch.distributed.get_world_size(optimizer.data_parallel_group) > 1:
            step = self._step.to(optimizer.buffers[0].params[0].device)
            torch.distributed.all_reduce(step, torch.distributed.ReduceOp.MAX, group=optimizer.data_parallel_group)
            self._step = step.cpu()

    def parameters(self) -> list[Tensor]:
        return [parameter for buffer in self.optimizer.buffers for parameter in buffer.params]

    def group_of(self, parameter: Tensor) -> int:
        found = self.optimizer.model_param_group_index_map.get(parameter)
        index = -1 if found is None else found[0]
        if torch.distributed.get_world_size(self.optimizer.data_parallel_group) == 1:
            return index
        both = torch.tensor([index], device=parameter.device)
        torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX, group=self.optimizer.data_parallel_group)
        return int(both)

    def _range(self, parameter: Tensor) -> Any:
        if parameter not in self.optimizer.model_param_group_index_map:
            return None
        return self.optimizer._get_model_param_range_map(parameter)["param"]

    def read(self, parameter: Tensor) -> dict[str, Any]:
        here = self._range(parameter)
        own = {} if here is None else self.optimizer._get_main_param_and_optimizer_states(parameter)
        group = self.optimizer.data_parallel_group
        out: dict[str, Any] = {}
        for key, name in (("param", "master"), *((moment, moment) for moment in _MOMENTS)):
            whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
            if key in own:
                whole[here.start : here.end] = own[key].detach().view(-1).float()
            if torch.distributed.get_world_size(group) > 1:
                torch.distributed.all_reduce(whole, group=group)
            out[name] = _host(whole.view(parameter.shape))
        if self._step == 0:
            return {"master": out["master"]}
        return out | {"step": self._step.clone()}

    def write(self, parameter: Tensor, state: dict[str, Any] | None) -> None:
        here = self._range(parameter)
        if here is None or state is None:
            return
        if not self.optimizer.optimizer.state and "exp_avg" in state:
            self.optimizer._init_optimizer_states_with_dummy_values()
        tensors = self.optimizer._get_main_param_and_optimizer_states(parameter)
        for key, value in tensors.items():
            held = state.get("master" if key == "param" else key)
            if key == "step":
                value.fill_(float(held if held is not None else 0))
            elif held is not None:
                value.data.copy_(held.reshape(-1)[here.start : here.end].view(value.shape))

    def finish(self) -> None:
        """The model's parameters are the masters, rounded, as after a step."""
        self.optimizer._copy_main_params_to_model_params()


def _host(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()
