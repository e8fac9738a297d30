"""Names of experts and routers in distributed checkpoints of torchtitan and Megatron Core."""

from __future__ import annotations

import dataclasses
import re

from coppice.modules.site import Matrices
from coppice.modules.torchtitan import BALANCE, EXPERTS
from coppice.optimizer import KINDS

_TORCHTITAN = r"layers\.(?P<layer>\d+)\.moe\."
_MEGATRON = r"layers\.(?:(?P<layer>\d+)\.)?mlp\."
_PATTERNS = (
    re.compile(_TORCHTITAN + rf"(?:routed_experts\.inner_)?experts\.(?P<titan>{'|'.join(EXPERTS)})(?=\.|$)"),
    re.compile(_TORCHTITAN + r"router\.gate\.(?P<router>weight|bias)(?=\.|$)"),
    re.compile(_TORCHTITAN + rf"(?P<balance>{'|'.join(BALANCE)})(?=\.|$)"),
    re.compile(_MEGATRON + r"experts\.experts\.(?P<fc>linear_fc[12])\.(?P<part>weight|bias)(?=\.|$)"),
    re.compile(_MEGATRON + r"router\.(?P<router>weight|bias)(?=\.|$)"),
    re.compile(_MEGATRON + r"router\.(?P<balance>expert_bias)(?=\.|$)"),
)
# One tensor for each expert: Megatron's checkpoints with `singleton_local_shards`.
SINGLE = re.compile(_MEGATRON + r"experts\.experts\.\d+\.linear_fc")
# Flat pieces of the distributed optimizer's buckets, which have no parameters' shapes.
BUCKETS = re.compile(r"gbuf_idx|bucket_idx|\.bucket")
# What Megatron keeps of each expert's linear layers that is no tensor: "..._extra_state/shard_0.3_2.4" is of layer 0
# of 2 and expert 3 of 4.
_EXTRA = re.compile(_MEGATRON + r"experts\.experts\.linear_fc[12]\._extra_state/shard_(?P<at>[\d.]+)_(?P<of>[\d.]+)$")
_KINDS = KINDS | {"fp32_param": "master", "param": "master"}


@dataclasses.dataclass(frozen=True)
class ExpertName:
    """What a key of a checkpoint stands for.

    Attributes
    ----------
    parameter : str
        The key of the parameter itself.
    kind : str
        ``value``, ``master``, ``exp_avg``, ``exp_avg_sq``, or the name that is not known.
    layer : int or None
        None if one tensor has all layers along its first dimension.
    role : str
        As in `Rows`, or ``experts``.
    matrices : Matrices or None
        Of experts.
    """

    parameter: str
    kind: str
    layer: int | None
    role: str
    matrices: Matrices | None = None


def expert_name(key: str) -> ExpertName | None:
    """What the key stands for; None if it is not of experts or routers, or has no row for each."""
    for pattern in _PATTERNS:
        found = pattern.search(key)
        if found is None:
            continue
        before, after = key[: found.start()].split("."), key[found.end() :].split(".")
        if "param_groups" in before or "step" in (*before, *after):
            return None
        groups = found.groupdict()
        kind = _kind(before, after)
        layer = None if groups["layer"] is None else int(groups["layer"])
        role, matrices = _role(groups)
        prefix = "".join(part + "." for part in before if part in ("decoder", "encoder", "module"))
        return ExpertName(prefix + found.group(), kind, layer, role, matrices)
    return None


def _kind(before: list[str], after: list[str]) -> str:
    named = [part for part in (*before, *after) if part in _KINDS]
    if named:
        return _KINDS[named[0]]
    inside = "state" in before or any(part.startswith("optim") for part in before)
    return (after[-1] or before[-2]) if inside else "value"


def _role(groups: dict[str, str | None]) -> tuple[str, Matrices | None]:
    if titan := groups.get("titan"):
        return "experts", EXPERTS[titan]
    if groups.get("fc"):
        ending = "" if groups["part"] == "weight" else "_bias"
        return "experts", Matrices(("expert_gate_up" if groups["fc"] == "linear_fc1" else "expert_down") + ending)
    if groups.get("router"):
        return ("router" if groups["router"] == "weight" else "router_bias"), None
    name = str(groups["balance"])
    return BALANCE.get(name, "selection_bias"), None


@dataclasses.dataclass(frozen=True)
class ExtraName:
    """A key with something that is no tensor, of one expert in one layer."""

    key: str
    layer: int
    expert: int

    def of_child(self, child: int, experts: int) -> str:
        """The key of the same for an expert of a layer with `experts`."""
        stem, _, shard = self.key.rpartition("/shard_")
        at, of = (part.split(".") for part in shard.split("_"))
        at[-1], of[-1] = str(child), str(experts)
        return f"{stem}/shard_{'.'.join(at)}_{'.'.join(of)}"


def extra_name(key: str) -> ExtraName | None:
    """What such a key stands for; None if it is another."""
    found = _EXTRA.search(key)
    if found is None:
        return None
    at = [int(part) for part in found.group("at").split(".")]
    layer = int(found.group("layer")) if found.group("layer") else at[0]
    return ExtraName(key, layer, at[-1])
