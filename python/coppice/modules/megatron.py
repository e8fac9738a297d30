"""Models of Megatron Core: experts as a list of MLPs, or as numbered weights of grouped linear layers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from coppice.errors import UnsupportedError, a_type
from coppice.modules.expert_lists import arrange_experts, arrange_numbered
from coppice.modules.layout import LayoutOfModules
from coppice.modules.site import Arrange, Matrices, Number, Packed, Place, Rows, Separate, Site
from coppice.ranks import ranks_of

_BUFFERS = {
    "expert_bias": "selection_bias",
    "local_tokens_per_expert": "counter",
    "global_tokens_per_expert": "counter",
}


class MegatronLayout(LayoutOfModules):
    """Its MoELayer with a TopKRouter."""

    name = "Megatron Core"

    def is_moe(self, module: nn.Module) -> bool:
        """Whether the module is a MoELayer."""
        return _is_moe(module)

    def site(self, path: str, moe: Any) -> Site:
        """Its experts, router and groups of ranks."""
        return _site(path, moe)

    def description(self, model: nn.Module) -> str:
        """What its configuration says."""
        moe: Any = next(module for module in model.modules() if _is_moe(module))
        config, router = moe.config, moe.router
        groups = config.moe_router_num_groups
        facts = {
            "num_layers": config.num_layers,
            "moe_layers": _moe_layers(config),
            "num_experts": config.num_moe_experts,
            "top_k": config.moe_router_topk,
            "expert_width": config.moe_ffn_hidden_size,
            "gate": _gate(config),
            "renormalise": config.moe_router_score_function == "sigmoid" or not config.moe_router_pre_softmax,
            "router_bias": getattr(router, "bias", None) is not None,
            "selection_bias": getattr(router, "expert_bias", None) is not None,
            "num_groups": groups or 1,
            "top_groups": (config.moe_router_group_topk or 1) if groups else 1,
        }
        return json.dumps({"modules": facts})

    def numbers(self, model: nn.Module, sites: list[Site], plan: Any) -> list[Number]:
        """Its configuration, and the attributes of routers, experts and token dispatchers."""
        if plan.top_k_factor > 1:
            raise UnsupportedError(
                'top_k="scale" and split: Megatron Core keeps top-K and the width of experts in many places '
                "(plan without them)"
            )
        whole = (plan.experts_before, plan.experts_after)
        ranks, rank = ranks_of(sites[0].group)
        here = (whole[0] // ranks, whole[1] // ranks)
        indices = tuple(list(range(rank * count, (rank + 1) * count)) for count in here)
        owners: dict[int, Any] = {}
        for module in model.modules():
            for owner in (module, getattr(module, "config", None), getattr(module, "token_dispatcher", None)):
                owners[id(owner)] = owner
        out = []
        for owner in owners.values():
            for name, (before, after) in _numbers(whole, here, indices).items():
                if type(getattr(owner, name, None)) is type(before) and getattr(owner, name) == before:
                    out.append(Number(owner, name, before, after))
            out += _chunk_orders(owner, whole[1], here[1])
        return out


def _numbers(whole: Any, here: Any, indices: Any) -> dict[str, tuple[Any, Any]]:
    """Names of numbers, and their values before and after."""
    out = {"num_moe_experts": whole, "num_experts": whole, "num_local_experts": here, "num_gemms": here}
    return out | {"local_expert_indices": indices}


def _chunk_orders(dispatcher: Any, experts: int, local: int) -> Iterator[Number]:
    """The all-to-all dispatcher's tables of which chunk of tokens goes where."""
    for name in ("sort_input_by_local_experts", "restore_output_by_local_experts"):
        before = getattr(dispatcher, name, None)
        if isinstance(before, Tensor):
            chunks = torch.arange(experts * dispatcher.tp_size, device=before.device)
            by_expert = (-1, local) if name.startswith("sort") else (local, -1)
            yield Number(dispatcher, name, before, chunks.reshape(*by_expert).T.ravel())


def _gate(config: Any) -> str:
    if config.moe_router_score_function == "sigmoid":
        return "sigmoid"
    return "softmax" if config.moe_router_pre_softmax else "topk_softmax"


def _moe_layers(config: Any) -> list[int]:
    frequency = config.moe_layer_freq
    if isinstance(frequency, int):
        return [layer for layer in range(config.num_layers) if layer % frequency == 0]
    return [layer for layer, is_moe in enumerate(frequency) if is_moe]


def _is_moe(module: nn.Module) -> bool:
    config = getattr(module, "config", None)
    return hasattr(config, "num_moe_experts") and hasattr(module, "router") and hasattr(module, "local_expert_indices")


def _site(path: str, moe: Any) -> Site:
    _refuse_divided(path, moe)
    experts, arrange = _experts(path, moe)
    router = moe.router
    where = f"{path}.router"
    rows = [Rows(Place(router, "weight", f"{where}.weight"), "router")]
    if getattr(router, "bias", None) is not None:
        rows.append(Rows(Place(router, "bias", f"{where}.bias"), "router_bias"))
    for name, role in _BUFFERS.items():
        if isinstance(getattr(router, name, None), Tensor):
            rows.append(Rows(Place(router, name, f"{where}.{name}"), role))
    group = moe.ep_group if moe.ep_group is not None and moe.ep_group.size() > 1 else None
    return Site(
        path,
        moe.layer_number - 1,
        experts,
        rows,
        router,
        _read_routing,
        arrange,
        first_expert=moe.local_expert_indices[0],
        group=group,
        data_group=getattr(moe.experts, "dp_group", None),
    )


def _refuse_divided(path: str, moe: Any) -> None:
    group = getattr(moe.experts, "tp_group", None)
    if group is not None and group.size() > 1:
        raise UnsupportedError(
            f"{path}: each of its matrices is divided over {group.size()} ranks (expert tensor parallel); in memory "
            "they grow only where a rank has them whole (save a distributed checkpoint, expand it with coppice-dcp, "
            "and load it)"
        )


def _experts(path: str, moe: Any) -> tuple[list[Packed | Separate], Arrange]:
    experts, where = moe.experts, f"{path}.experts"
    fc1 = "expert_gate_up" if moe.config.gated_linear_unit else "expert_up"
    roles = {"linear_fc1": fc1, "linear_fc2": "expert_down"}
    sets: list[Packed | Separate] = []
    if hasattr(experts, "local_experts"):
        for linear, role in roles.items():
            for part, ending in (("weight", ""), ("bias", "_bias")):
                places = [
                    Place(getattr(expert, linear), part, f"{where}.local_experts.{number}.{linear}.{part}")
                    for number, expert in enumerate(experts.local_experts)
                ]
                if all(isinstance(getattr(place.module, part, None), nn.Parameter) for place in places):
                    sets.append(Separate(places, Matrices(role + ending)))
        return sets, arrange_experts(experts.local_experts, "", sets)
    for linear, role in roles.items():
        module = getattr(experts, linear, None)
        for part, ending in (("weight", ""), ("bias", "_bias")):
            names = [f"{part}{number}" for number in range(len(moe.local_expert_indices))]
            if module is not None and all(isinstance(getattr(module, name, None), nn.Parameter) for name in names):
                places = [Place(module, name, f"{where}.{linear}.{name}") for name in names]
                sets.append(Separate(places, Matrices(role + ending)))
    if not sets:
        raise UnsupportedError(
            f"{where}: {a_type(experts)}; wanted a SequentialMLP or grouped linear layers with weight0, weight1 ... "
            "(the legacy GroupedMLP keeps all experts in one matrix: save a checkpoint and expand it with coppice-dcp)"
        )
    return sets, arrange_numbered(sets)


def _read_routing(router: Any, output: Any) -> tuple[Tensor, Tensor] | None:
    probabilities, chosen = output[0], output[1]
    if chosen is None or chosen.dtype != torch.bool or chosen.dim() != 2:
        return None
    per_token = router.topk
    if not bool((chosen.sum(1) == per_token).all()):
        return None  # tokens were dropped
    index = chosen.nonzero()[:, 1].reshape(-1, per_token)
    scale = router.config.moe_router_topk_scaling_factor or 1.0
    return index, probabilities.gather(1, index) / scale
