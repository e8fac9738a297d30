"""Models of transformers, by the tables of their families."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from coppice import _core
from coppice.describe import config_json, is_transformers_config
from coppice.errors import FormatError, UnsupportedError
from coppice.modules.expert_lists import arrange_experts
from coppice.modules.layout import modules_above
from coppice.modules.site import Matrices, Number, Packed, Place, Rows, Separate, Site
from coppice.wrappers import plain_path

# Names under which modules keep a number of the configuration; those of one row mean the same.
_ALIASES = (
    {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"},
    {"num_experts_per_tok", "top_k", "topk", "moe_topk", "moe_k"},
    {"n_group", "num_group", "num_groups", "n_groups"},
    {"topk_group", "top_groups"},
    {"routed_scaling_factor"},
    {"moe_intermediate_size", "intermediate_size", "intermediate_dim", "expert_dim", "ffn_dim"},
)


class TransformersLayout:
    """Experts of transformers: packed 3-D parameters, or a module for each expert."""

    name = "transformers"

    def recognises(self, model: nn.Module) -> bool:
        """Whether its configuration is one of transformers."""
        return is_transformers_config(getattr(model, "config", None))

    def description(self, model: nn.Module) -> str:
        """Its configuration, and the names and shapes of its tensors."""
        places = _named(model)
        return _description(model, places, "" if _slots(model, places, "") else f"{model.base_model_prefix}.")

    def sites(self, model: nn.Module) -> list[Site]:
        """The layers with experts, as the family's table names their tensors."""
        places = _named(model)
        slots = _slots(model, places, "") or _slots(model, places, f"{model.base_model_prefix}.")
        if not slots:
            model_type = getattr(model.config, "model_type", "")
            raise UnsupportedError(
                f"a {model_type} model has no experts to copy (convert it first with `coppice convert`)"
            )
        layers: dict[int, list[dict[str, Any]]] = {}
        for slot in slots:
            layers.setdefault(slot["layer"], []).append(slot)
        return [_site(model, layer, of_layer, places) for layer, of_layer in sorted(layers.items())]

    def numbers(self, model: nn.Module, sites: list[Site], plan: Any) -> list[Number]:
        """The configuration's own keys, and the attributes of modules with their values."""
        before = config_json(model.config)
        changes = list(config_differences(model.config, before, json.loads(plan.grown_config())))
        paths = [rows.place.path.rpartition(".")[0] for site in sites for rows in site.rows]
        for site in sites:
            for experts in site.experts:
                place = experts.place if isinstance(experts, Packed) else experts.places[0]
                paths.append(place.path.rpartition(".")[0])
        numbers = {(id(number.owner), number.name): number for number in changes}
        for module in modules_above(model, paths):
            for number in _attributes(module, changes):
                numbers[id(number.owner), number.name] = number
        return list(numbers.values())


def _named(model: nn.Module) -> dict[str, Place]:
    """Its parameters and buffers, by the names that they have without wrappers of parts."""
    return {plain_path(path): place for path, place in _places(model)}


def _description(model: nn.Module, places: dict[str, Place], prefix: str) -> str:
    tensors = [(prefix + name, list(place.tensor.shape)) for name, place in places.items()]
    return json.dumps({"config": config_json(model.config), "tensors": tensors})


def _slots(model: nn.Module, places: dict[str, Place], prefix: str) -> list[dict[str, Any]]:
    """What `_core` finds among the tensors; a model without its head lacks a prefix of their names.

    Returns nothing if that prefix may be what is missing.
    """
    try:
        slots = _core.slots_in_memory(_description(model, places, prefix))
    except FormatError:
        if not prefix and model.base_model is model and model.base_model_prefix:
            return []
        raise
    for slot in slots:
        slot["name"] = slot["name"].removeprefix(prefix)
        slot["expert_at"] -= len(prefix)
    return slots


def _places(model: nn.Module) -> Iterator[tuple[str, Place]]:
    for path, module in model.named_modules(remove_duplicate=False):
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is not None:
                full = f"{path}.{name}" if path else name
                yield full, Place(module, name, full)


def _site(model: nn.Module, layer: int, slots: list[dict[str, Any]], places: dict[str, Place]) -> Site:
    experts: list[Packed | Separate] = []
    rows: list[Rows] = []
    separate: dict[str, Separate] = {}
    lists: set[tuple[str, str]] = (
        set()
    )  # a module with a module for each expert, and what precedes the number in its names
    for slot in slots:
        place = places[slot["name"]]
        if slot["kind"] in ("router", "rows"):
            rows.append(Rows(place, slot["role"] if slot["kind"] == "router" else "rows", slot["trailing"]))
            continue
        role = "copied" if slot["kind"] == "copied" else slot["role"]
        matrices = Matrices(role, slot["transposed"], slot["interleaved"])
        if slot["stacked"]:
            experts.append(Packed(place, matrices))
            continue
        segment, own = _expert_segment(slot)
        if own not in separate:
            separate[own] = Separate([], matrices)
            experts.append(separate[own])
        separate[own].places.append(place)
        lists.add((place.path.removesuffix(f".{segment}.{own}"), segment.rstrip("0123456789")))
    if len(lists) > 1 or (lists and len(separate) != len(experts)):
        raise UnsupportedError(
            f"layer {layer}: its experts lie in {' and '.join(sorted(path for path, _ in lists))}, some in packed "
            "parameters; wanted one list of modules, or packed parameters alone (expand the checkpoint on disk)"
        )
    arrange = None
    if lists:
        path, label = lists.pop()
        arrange = arrange_experts(model.get_submodule(path), label, experts)
    router = next((r.place for r in rows if r.role == "router"), None)
    return Site(
        path=(router or rows[0].place).path.rpartition(".")[0],
        layer=layer,
        experts=experts,
        rows=rows,
        router=router.module if router else None,
        read_routing=read_routing,
        arrange=arrange,
    )


def _expert_segment(slot: dict[str, Any]) -> tuple[str, str]:
    """The part of a name with the expert's number (``3``, ``expert_3``), and what follows it."""
    name, at = slot["name"], slot["expert_at"]
    begin = name.rfind(".", 0, at) + 1
    segment, _, own = name[begin:].partition(".")
    return segment, own


def read_routing(router: nn.Module, output: Any) -> tuple[Tensor, Tensor] | None:
    """Chosen experts and gates before scaling, both [tokens, K], from what a router returns."""
    if not isinstance(output, tuple):
        return None
    tensors = [t for t in output if isinstance(t, torch.Tensor) and t.dim() == 2]
    chosen = next((t for t in tensors if not t.is_floating_point()), None)
    if chosen is None:
        return None
    gates = next((t for t in reversed(tensors) if t.is_floating_point() and t.shape == chosen.shape), None)
    return None if gates is None else (chosen, gates / getattr(router, "routed_scaling_factor", 1.0))


def config_differences(config: Any, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Number]:
    """The keys of a configuration whose values change, in its parts too."""
    for key, value in after.items():
        old = before.get(key)
        if old == value:
            continue
        part = getattr(config, key, None)
        if isinstance(value, dict) and is_transformers_config(part):
            yield from config_differences(part, old or {}, value)
        else:
            yield Number(config, key, old, value)


def _attributes(module: nn.Module, changes: list[Number]) -> Iterator[Number]:
    for change in changes:
        names = next((row for row in _ALIASES if change.name in row), {change.name})
        for name in sorted(names):
            value = module.__dict__.get(name)
            if type(value) is type(change.before) and value == change.before:
                yield Number(module, name, value, change.after)
    if isinstance(module, nn.Linear):
        for change in changes:
            if change.name in _ALIASES[0] and module.out_features == change.before:
                yield Number(module, "out_features", change.before, change.after)
