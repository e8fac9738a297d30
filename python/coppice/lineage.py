"""Lineage-unique routing: at most one child of each parent for a token, so that an expansion keeps the function."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from coppice import _core
from coppice.errors import UnsupportedError, UsageError
from coppice.growth_plan import GrowthPlan
from coppice.modules import layout_of
from coppice.modules.site import Site
from coppice.wrappers import without_ddp

__all__ = ["LineageRouting", "lineage_unique"]

_TIE = 1e-5  # equal rows give logits that differ by rounding


def lineage_unique(model: nn.Module, plan: GrowthPlan, *, share: float = 1.0, seed: int = 0) -> LineageRouting:
    """Route an expanded model so that it computes what it computed before.

    Of each lineage (a parent and its copies) at most one child works for a token, and its
    gate is the parent's. Which of several equal children it is depends on the token's
    position, so siblings share their parent's tokens. With router rows that are exact
    copies (``router_init="copy"``) the function is the same as before. Lower `share` over
    the steps of a handover, then call `remove`: the model then routes as its own code does.

    Use it as a context, or keep what it returns.

    Parameters
    ----------
    model : module
        A model of transformers or torchtitan, after `expand_` with this plan.
    share : float
        Part of the tokens that are routed so, 0 to 1.
    seed : int
        Of the choice of tokens and children.

    Raises
    ------
    UnsupportedError
        A router of another kind, such as one with capacity limits.
    UsageError
        The model does not have the plan's experts.
    """
    return LineageRouting(without_ddp(model), plan, share, seed)


class LineageRouting:
    """Hooks on the routers of a model.

    Attributes
    ----------
    share : float
        May be set between steps.
    """

    def __init__(self, model: nn.Module, plan: GrowthPlan, share: float, seed: int) -> None:
        layout = layout_of(model)
        if layout.name == "Megatron Core":
            raise UnsupportedError(
                "lineage_unique: Megatron Core's routers are not patched (use transformers or torchtitan)"
            )
        facts = _core.routing_facts(layout.description(model))
        if facts["gate"] == "other":
            raise UnsupportedError(
                f"lineage_unique: {type(model).__name__} has a router of another kind (leave it out)"
            )
        self.share, self._seed, self._facts = share, seed, facts
        self._handles: list[Any] = []
        for site in layout.sites(model):
            router = next((rows.place.tensor for rows in site.rows if rows.role == "router"), None)
            if (
                site.router is None
                or router is None
                or router.shape[0] != plan.experts[1]
                or site.layer not in plan.parents
            ):
                self.remove()
                raise UsageError(
                    f"lineage_unique: {site.path} does not have the {plan.experts[1]} experts of the plan "
                    "(call it behind expand_, with the same plan)"
                )
            lineages = _Lineages(plan.parents[site.layer], plan.experts[0], site.layer, facts, seed)
            hook = _titan_hook if layout.name == "torchtitan" else _transformers_hook
            self._handles.append(site.router.register_forward_hook(hook(self, site, lineages)))

    def remove(self) -> None:
        """Route by the model's own code again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> LineageRouting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def chosen_tokens(self, count: int, layer: int, device: torch.device) -> Tensor:
        """Which tokens are routed so."""
        position = torch.arange(count, device=device)
        return (_hash(position, -1 - layer, self._seed) % 65536) < round(self.share * 65536)


class _Lineages:
    """The children of each parent of one layer."""

    def __init__(self, parents: list[int], experts: int, layer: int, facts: dict[str, Any], seed: int) -> None:
        self.parents = torch.tensor(parents)
        self.experts, self.layer, self.facts, self.seed = experts, layer, facts, seed
        self.siblings = torch.bincount(self.parents, minlength=experts)
        self.children = torch.full((experts, int(self.siblings.max())), -1)
        for parent in range(experts):
            own = (self.parents == parent).nonzero()[:, 0]
            self.children[parent, : len(own)] = own

    def route(self, z_TN: Tensor, bias_N: Tensor | None, top_k: int) -> tuple[Tensor, Tensor]:
        """Chosen children and gates, [tokens, K]."""
        parents, siblings, children = (t.to(z_TN.device) for t in (self.parents, self.siblings, self.children))
        z_TN = z_TN.float()
        score_TN = self._scores(z_TN, siblings[parents])
        choice_TN = (score_TN if bias_N is None else score_TN + bias_N).detach()
        best_TE = torch.full((len(z_TN), self.experts), float("-inf"), device=z_TN.device)
        best_TE.scatter_reduce_(1, parents.expand(len(z_TN), -1), choice_TN, "amax")
        lineage_TK = self._within_groups(best_TE).topk(top_k, dim=1).indices
        child_TK = self._children(z_TN.detach(), choice_TN, bias_N, children[lineage_TK])
        gate_TK = score_TN.gather(1, child_TK)
        if self.facts["gate"] == "topk_softmax":
            gate_TK = gate_TK.softmax(1)
        elif self.facts["renormalise"]:
            gate_TK = gate_TK / (gate_TK.sum(1, keepdim=True) + 1e-20)
        return child_TK, gate_TK * self.facts["scaling"]

    def _scores(self, z_TN: Tensor, siblings_N: Tensor) -> Tensor:
        """The scores of the parents."""
        if self.facts["gate"] == "sigmoid":
            return z_TN.sigmoid()
        if self.facts["gate"] == "topk_softmax":
            return z_TN
        return (z_TN - (z_TN - siblings_N.log()).logsumexp(1, keepdim=True)).exp()

    def _within_groups(self, best_TE: Tensor) -> Tensor:
        groups, kept = self.facts["groups"], self.facts["top_groups"]
        if groups <= 1:
            return best_TE
        by_group = best_TE.view(len(best_TE), groups, -1)
        of_group = by_group.topk(2, dim=2).values.sum(2) if self.facts["best_two"] else by_group.amax(2)
        out = torch.ones_like(of_group, dtype=torch.bool).scatter_(1, of_group.topk(kept, dim=1).indices, False)
        return by_group.masked_fill(out.unsqueeze(2), float("-inf")).flatten(1)

    def _children(self, z_TN: Tensor, choice_TN: Tensor, bias_N: Tensor | None, children_TKR: Tensor) -> Tensor:
        """Of each chosen lineage the best child, or one of those that tie with it."""
        there = children_TKR >= 0
        index = children_TKR.clamp(min=0)
        flat = index.flatten(1)
        z = z_TN.gather(1, flat).view_as(index)
        choice = choice_TN.gather(1, flat).view_as(index).masked_fill(~there, float("-inf"))
        best = choice.argmax(2, keepdim=True)
        best_z = z.gather(2, best)
        tied = there & ((z - best_z).abs() <= _TIE * best_z.abs().clamp(min=1))
        if bias_N is not None:
            bias = bias_N[index]
            tied &= bias == bias.gather(2, best)
        position = torch.arange(len(z_TN), device=z_TN.device)
        turn = _hash(position, self.layer, self.seed).view(-1, 1, 1) % tied.sum(2, keepdim=True)
        mine = tied & (tied.cumsum(2) == turn + 1)
        return index.gather(2, mine.int().argmax(2, keepdim=True)).squeeze(2)


def _hash(position: Tensor, layer: int, seed: int) -> Tensor:
    x = (position * 2654435761 + (layer + 1000003) * 40503 + seed * 97) & 0xFFFFFFFF
    for shift, factor in ((16, 73244475), (15, 73244475)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _bias(site: Site) -> Tensor | None:
    return next((rows.place.tensor.detach().reshape(-1) for rows in site.rows if rows.role == "selection_bias"), None)


def _mixed(
    routing: LineageRouting, layer: int, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Tokens of the share get our choice and gates, the others those of the model's own code."""
    mask = routing.chosen_tokens(len(ours[0]), layer, ours[0].device).unsqueeze(1)
    return torch.where(mask, ours[0], theirs[0]), torch.where(mask, ours[1].to(theirs[1].dtype), theirs[1])


def _transformers_hook(routing: LineageRouting, site: Site, lineages: _Lineages) -> Any:
    """Its routers return logits, gates and choices."""

    def hook(router: nn.Module, inputs: Any, output: Any) -> Any:
        if not (isinstance(output, tuple) and len(output) == 3 and output[1].shape == output[2].shape):
            raise UnsupportedError(
                f"{site.path}: its router does not return logits, gates and choices (leave lineage_unique out)"
            )
        logits, gates, chosen = output
        ours = lineages.route(logits, _bias(site), chosen.shape[1])
        chosen, gates = _mixed(routing, site.layer, ours, (chosen, gates))
        return logits, gates, chosen

    return hook


def _titan_hook(routing: LineageRouting, site: Site, lineages: _Lineages) -> Any:
    """Its routers return gates, choices, and the number of tokens of each expert (or all scores)."""

    def hook(router: Any, inputs: Any, output: Any) -> Any:
        x = inputs[0]
        logits = router.gate(x).flatten(0, -2)
        gates, chosen, third = output
        child, gate = lineages.route(logits, _bias(site), chosen.shape[-1])
        theirs = (chosen.flatten(0, -2), gates.flatten(0, -2))
        child, gate = _mixed(routing, site.layer, (child, gate * router.route_scale), theirs)
        if third.dim() == 1:
            third = torch.bincount(child.flatten(), minlength=len(third)).to(third.dtype)
        return gate.view_as(gates), child.view_as(chosen), third

    return hook
