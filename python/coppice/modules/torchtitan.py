"""Models of torchtitan: packed experts, a router with a gate, buffers for balancing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from coppice.errors import UnsupportedError
from coppice.modules.layout import LayoutOfModules
from coppice.modules.site import Matrices, Number, Packed, Place, Rows, Site

# Parameters of its modules of experts, by name.
EXPERTS = {
    "w1_EFD": Matrices("expert_gate"),
    "w2_EDF": Matrices("expert_down"),
    "w3_EFD": Matrices("expert_up"),
    "w1": Matrices("expert_gate"),
    "w2": Matrices("expert_down"),
    "w3": Matrices("expert_up"),
    "mlp1_weight_EGD": Matrices("expert_gate_up", interleaved=True),
    "mlp1_weight": Matrices("expert_gate_up", interleaved=True),
    "mlp1_bias": Matrices("expert_gate_up_bias", interleaved=True),
    "mlp2_weight": Matrices("expert_down"),
    "mlp2_bias": Matrices("expert_down_bias"),
    "mlp1_bias_EG": Matrices("expert_gate_up_bias", interleaved=True),
    "mlp2_weight_EDF": Matrices("expert_down"),
    "mlp2_bias_ED": Matrices("expert_down_bias"),
}
BALANCE = {"expert_bias_E": "selection_bias", "tokens_per_expert_E": "counter"}
BALANCE |= {"expert_bias": "selection_bias", "tokens_per_expert": "counter"}


class TorchtitanLayout(LayoutOfModules):
    """Its module MoE, as all of its models use it."""

    name = "torchtitan"

    def is_moe(self, module: nn.Module) -> bool:
        """Whether the module is a MoE."""
        return _is_moe(module)

    def site(self, path: str, moe: Any) -> Site:
        """Its experts, router and buffers."""
        return _site(path, moe)

    def description(self, model: nn.Module) -> str:
        """What its modules say."""
        sites = self.sites(model)
        router = sites[0].router
        assert router is not None
        down = next(
            e.place.tensor for e in sites[0].experts if isinstance(e, Packed) and e.matrices.role == "expert_down"
        )
        groups = getattr(router, "num_expert_groups", None)
        facts = {
            "num_layers": max(site.layer for site in sites) + 1,
            "moe_layers": [site.layer for site in sites],
            "num_experts": router.num_experts,
            "top_k": router.top_k,
            "expert_width": down.shape[-1],
            "gate": router.score_func,
            "renormalise": bool(router.route_norm),
            "router_bias": getattr(router.gate, "bias", None) is not None,
            "selection_bias": any(rows.role == "selection_bias" for rows in sites[0].rows),
            "num_groups": groups or 1,
            "top_groups": (getattr(router, "num_limited_groups", None) or 1) if groups else 1,
        }
        return json.dumps({"modules": facts})

    def numbers(self, model: nn.Module, sites: list[Site], plan: Any) -> list[Number]:
        """Attributes of the modules, and the configuration that the model keeps."""
        changes = config_changes(plan.experts_before, plan.experts_after, plan.top_k_factor)
        out = []
        for site in sites:
            for module in model.get_submodule(site.path).modules():
                out += [Number(module, k, v, changes[k, v]) for k, v in vars(module).items() if _has(changes, k, v)]
                if module is getattr(site.router, "gate", None):
                    out += _out_features(module, changes)
        for kept in ("config", "model_args"):
            out += config_numbers(getattr(model, kept, None), changes)
        return out


def _has(changes: dict[tuple[str, int], int], key: str, value: Any) -> bool:
    return type(value) is int and (key, value) in changes


def _out_features(gate: Any, changes: dict[tuple[str, int], int]) -> Iterator[Number]:
    for (key, before), after in changes.items():
        if key == "num_experts" and getattr(gate, "out_features", None) == before:
            yield Number(gate, "out_features", before, after)


def config_changes(before: int, after: int, top_k_factor: int) -> dict[tuple[str, int], int]:
    """Which numbers of modules and configurations change: (name, value) to the value after."""
    return _Changes(before, after, top_k_factor)


class _Changes(dict[tuple[str, int], int]):
    def __init__(self, before: int, after: int, top_k_factor: int) -> None:
        super().__init__({("num_experts", before): after, ("num_local_experts", before): after})
        if top_k_factor > 1:
            raise UnsupportedError(
                'top_k="scale" and split: torchtitan keeps top-K in many places of its configuration '
                "(plan without them, or expand the checkpoint in transformers' format)"
            )


def config_numbers(config: Any, changes: dict[tuple[str, int], int], seen: set[int] | None = None) -> Iterator[Number]:
    """The numbers of a torchtitan configuration, in all its parts."""
    seen = set() if seen is None else seen
    if id(config) in seen:
        return
    seen.add(id(config))
    if isinstance(config, list | tuple):
        for item in config:
            yield from config_numbers(item, changes, seen)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return
    for field in dataclasses.fields(config):
        value: Any = getattr(config, field.name, None)
        if _has(changes, field.name, value):
            yield Number(config, field.name, value, changes[field.name, value])
            gate = getattr(config, "gate", None)
            if field.name == "num_experts" and gate is not None:
                yield from _out_features(gate, changes)
        else:
            yield from config_numbers(value, changes, seen)


def _is_moe(module: nn.Module) -> bool:
    router, experts = getattr(module, "router", None), _experts_of(module)
    return hasattr(router, "gate") and hasattr(router, "score_func") and experts is not None


def _experts_of(module: nn.Module) -> nn.Module | None:
    experts = getattr(getattr(module, "routed_experts", None), "inner_experts", None) or getattr(
        module, "experts", None
    )
    return experts if isinstance(experts, nn.Module) and set(experts._parameters) & set(EXPERTS) else None


def _site(path: str, moe: Any) -> Site:
    numbers = [int(part) for part in path.split(".") if part.isdigit()]
    experts = _experts_of(moe)
    assert experts is not None
    inside = next(name for name, module in moe.named_modules() if module is experts)
    packed: list[Packed | Any] = []
    for name, parameter in experts._parameters.items():
        if parameter is None:
            continue
        where = f"{path}.{inside}.{name}"
        if name not in EXPERTS:
            raise UnsupportedError(
                f"{where}: it is not known what this parameter of experts is for (add it to the layout)"
            )
        packed.append(Packed(Place(experts, name, where), EXPERTS[name]))
    router = moe.router
    rows = [Rows(Place(router.gate, "weight", f"{path}.router.gate.weight"), "router")]
    if getattr(router.gate, "bias", None) is not None:
        rows.append(Rows(Place(router.gate, "bias", f"{path}.router.gate.bias"), "router_bias"))
    for name, role in BALANCE.items():
        if isinstance(getattr(moe, name, None), Tensor):
            rows.append(Rows(Place(moe, name, f"{path}.{name}"), role))
    return Site(path, numbers[-1] if numbers else 0, packed, rows, router, _read_routing)


def _read_routing(router: Any, output: Any) -> tuple[Tensor, Tensor] | None:
    tensors = [t for t in output if isinstance(t, torch.Tensor)]
    chosen = next((t for t in tensors if not t.is_floating_point()), None)
    gates = next((t for t in tensors if t.is_floating_point() and chosen is not None and t.shape == chosen.shape), None)
    if chosen is None or gates is None:
        return None
    return chosen.flatten(0, -2), gates.flatten(0, -2) / router.route_scale
