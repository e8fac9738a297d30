"""Whether a model is what a plan makes of another one, in everything but its values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from coppice import _core
from coppice.checks import check_kind
from coppice.errors import UsageError
from coppice.modules.layout import Layout
from coppice.modules.site import Site
from coppice.optimizer import OptimizerStates
from coppice.preparation import Prepared
from coppice.stacks import stacks_of
from coppice.wrappers import plain_path

# Parameters and buffers by their paths.
Tensors = dict[str, Tensor]


def tensors_of(model: nn.Module) -> Tensors:
    """The parameters and buffers of a model, tied ones once.

    Raises
    ------
    UnsupportedError
        One has no values, or is of another class than torch's own.
    """
    out = {plain_path(path): tensor for path, tensor in [*model.named_parameters(), *model.named_buffers()]}
    for path, tensor in out.items():
        check_kind(path, tensor, sharded=True)
    return out


def check_larger(
    old: Prepared, tensors: Tensors, larger: nn.Module, layout: Layout, new_tensors: Tensors
) -> list[Site]:
    """Check `larger` against the model and plan; returns its layers with experts.

    Raises
    ------
    UsageError
        It has other layers, names, sizes, dtypes or numbers than the plan makes of the model; all are named.
    """
    if layout.name != old.layout.name:
        raise UsageError(f"larger: a model of {layout.name}; wanted one of {old.layout.name}, as the model is")
    wrong = list(_wrong_numbers(old, layout.description(larger)))
    sites = layout.sites(larger)
    if [_kinds(site) for site in sites] != [_kinds(site) for site in old.sites]:
        wrong.append(f"experts in layers {[s.layer for s in sites]}, the model's are in {[s.layer for s in old.sites]}")
        _refuse(wrong)
    expected = dict(_expected(old, sites, tensors))
    wrong += _wrong_tensors(expected, new_tensors)
    _refuse(wrong)
    return sites


def _refuse(wrong: list[str]) -> None:
    if wrong:
        more = f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise UsageError(
            f"larger: it is not the model that the plan makes: {'; '.join(wrong[:6])}{more} (make it as the model was "
            "made, with the plan's number of experts and nothing else changed)"
        )


def _kinds(site: Site) -> Any:
    return site.layer, [(type(e), e.matrices) for e in site.experts], [(r.role, r.trailing) for r in site.rows]


def _wrong_numbers(old: Prepared, description: str) -> Iterator[str]:
    """What the configurations, or the modules, say of sizes and counts, and of how routers choose."""
    before, found = json.loads(old.description), json.loads(description)
    if "modules" in before:
        yield from _differences(before["modules"] | {"num_experts": old.plan.experts_after}, found["modules"])
        return
    wanted = json.loads(old.plan.grown_config())
    if found["config"].get("model_type") != wanted["model_type"]:
        yield f"it is a {found['config'].get('model_type')}, wanted a {wanted['model_type']}"
        return
    yield from _differences(_sizes(wanted), found["config"])
    routing = [_core.routing_facts(text) for text in (json.dumps({"config": wanted}), description)]
    yield from _differences(*routing)


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The numbers and lists of a configuration that a model is built by."""
    nested = {key: _sizes(value) for key, value in config.items() if isinstance(value, dict)}
    numbers = {key: value for key, value in config.items() if type(value) is int and "token_id" not in key}
    lists = {key: value for key, value in config.items() if isinstance(value, list) and key != "architectures"}
    return nested | numbers | lists


def _differences(wanted: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    for key, value in wanted.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            yield from _differences(value, found[key])
        elif found.get(key) != value:
            yield f"its {key} is {found.get(key)}, wanted {value}"


def _expected(
    old: Prepared, sites: list[Site], tensors: Tensors
) -> Iterator[tuple[str, tuple[tuple[int, ...], Tensor]]]:
    """For each tensor of `larger`: its shape, and the tensor of the model that it is like."""
    number, after = old.plan.experts_before, old.plan.experts_after
    grown: set[str] = set()
    for old_site, site in zip(old.sites, sites, strict=True):
        parents = [parent for parent, _ in old.grower.children(old_site.layer)]
        for stack, new in zip(stacks_of(old_site, number), stacks_of(site, after), strict=True):
            grown |= {*stack.paths}
            shape = stack.shape(old.grower.shape_after(stack.one, stack.matrices), after)
            like = stack.paths if stack.packed else [stack.paths[parent] for parent in parents]
            paths = new.paths if len(new.paths) == len(like) else [f"{new.paths[0]} (one of {len(new.paths)})"]
            for path, parent in zip(paths, like, strict=False):
                yield path, (shape, tensors[parent])
        for rows, _ in zip(old_site.rows, site.rows, strict=True):
            path, rows_before, rows_after = plain_path(rows.place.path), number + rows.trailing, after + rows.trailing
            shape = tuple(rows.place.tensor.shape)
            if len(shape) == 2 and shape[0] == 1 and shape[1] == rows_before:
                wanted: tuple[int, ...] = (1, rows_after)
            else:
                wanted = (rows_after, *shape[1:])
            grown.add(path)
            yield path, (wanted, tensors[path])
    for path, tensor in tensors.items():
        if path not in grown:
            yield path, (tuple(tensor.shape), tensor)


def _wrong_tensors(expected: dict[str, tuple[tuple[int, ...], Tensor]], found: Tensors) -> Iterator[str]:
    for path in sorted(expected.keys() - found.keys()):
        yield f"it has no {path}"
    for path in sorted(found.keys() - expected.keys()):
        yield f"it has {path}, of which the model has nothing"
    for path, (shape, like) in expected.items():
        tensor = found.get(path)
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            yield f"{path} is {list(tensor.shape)}, wanted {list(shape)}"
        if tensor.dtype != like.dtype:
            yield f"{path} is {tensor.dtype}, the model's is {like.dtype}"
        if tensor.requires_grad != like.requires_grad:
            yield f"requires_grad of {path} is {tensor.requires_grad}, the model's is {like.requires_grad}"


def group_pairs(
    old: OptimizerStates, new: OptimizerStates, tensors: Tensors, new_tensors: Tensors, origin: Callable[[str], str]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each parameter group of the larger model's optimizer, behind the group that its settings come from.

    Parameters
    ----------
    origin : callable
        The parameter of the model that a parameter of the larger one comes from.

    Raises
    ------
    UsageError
        The optimizers are of different classes, or do not train the same parameters in the same groups.
    """
    kinds = [[type(optimizer).__name__ for optimizer in states.optimizers] for states in (old, new)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"larger_optimizer: {', '.join(kinds[1]) or 'none'}; wanted {', '.join(kinds[0]) or 'none'}, as the "
            "model's optimizer is (make both with the same function of your script)"
        )
    before = _groups("optimizer", "the model", old, tensors)
    after = _groups("larger_optimizer", "the larger model", new, new_tensors)
    sources: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for path, tensor in new_tensors.items():
        if not isinstance(tensor, nn.Parameter):
            continue
        source, target = before.get(origin(path)), after.get(path)
        if (source is None) != (target is None) or (source and target and source[0] != target[0]):
            raise UsageError(
                f"larger_optimizer: it {'trains' if target else 'does not train'} {path}, and the model's optimizer "
                f"{'trains' if source else 'does not train'} {origin(path)} (make both with the same function of your "
                "script)"
            )
        if source and target:
            sources.setdefault(target, set()).add(source)
    mixed = [target for target, found in sources.items() if len(found) > 1]
    if mixed:
        raise UsageError(
            f"larger_optimizer: its parameter group {mixed[0][1]} has parameters of several groups of the model's "
            f"optimizer, {sorted(group for _, group in sources[mixed[0]])} (group them as the model's are)"
        )
    return [
        (old.optimizers[i].param_groups[next(iter(found))[1]], new.optimizers[i].param_groups[group])
        for (i, group), found in sources.items()
    ]


def _groups(name: str, whose: str, states: OptimizerStates, tensors: Tensors) -> dict[str, tuple[int, int]]:
    """The optimizer and group of each trained parameter."""
    paths = {id(tensor): path for path, tensor in tensors.items()}
    out = {}
    for index, optimizer in enumerate(states.optimizers):
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                if id(parameter) not in paths:
                    raise UsageError(
                        f"{name}: a parameter of its group {number}, {list(parameter.shape)}, is not one of {whose} "
                        "(give the optimizer that trains it; make it behind fully_shard, which replaces parameters)"
                    )
                out[paths[id(parameter)]] = (index, number)
    return out
