"""Expand a model in memory, with the state of its optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from coppice import _core
from coppice.checks import check_tensors
from coppice.errors import UsageError
from coppice.grow_tensors import by_expert, new_tensor
from coppice.growth_plan import GrowthPlan
from coppice.modules.site import Packed, Place, Rows, Separate, Site
from coppice.optimizer import Entry, Joiner, OptimizerStates
from coppice.preparation import Growth, Prepared
from coppice.ranks import all_or_none, broadcast, ranks_of, refuse_different_plans, union_over_ranks
from coppice.undo import Undo
from coppice.wrappers import inner_model, refuse_wrapped, reset_compiled


def expand_(
    model: nn.Module,
    plan: GrowthPlan,
    *,
    optimizer: Any = None,
    allow_regroup: bool = False,
    then: Callable[[Undo], None] | None = None,
) -> Growth:
    """Expand a model in place by a plan, with the state of its optimizer.

    The values equal, bit for bit, those that ``coppice expand`` makes of the saved
    model by the same plan. Call it between two steps. Parameters stay the same objects,
    with their hooks, `requires_grad`, device and dtype; gradients of those that grow are
    dropped. Parameters of new expert modules join the groups of their parents. If
    anything fails, model and optimizer are as they were, bit for bit.

    Memory: a parameter and each tensor of its state are replaced one after another, so
    beside the expanded model and state there is at most one parameter of one layer as it
    was, with one tensor of its state; nothing else is kept. Only a plan that changes the
    original experts too (``split``, ``top_k="scale"`` with some routers, optimizer states
    ``share`` and the like) keeps what it changes until the end.

    Ranks: collective over the default process group, if there is one. Experts that Megatron
    Core divides over ranks (expert parallel) move to where the larger layer has them; each
    rank then keeps the experts that leave it until the end. What can fail is checked on all
    ranks before anything moves.

    Parameters
    ----------
    model : module
        A model of transformers, torchtitan or Megatron Core; torch.compile's wrapper is
        looked through, and compiled code is made again at the next call.
    plan : GrowthPlan
        What `plan` made, perhaps edited.
    optimizer : torch optimizer, or a list of them, optional
        Any whose state are numbers and tensors of the parameter's shape.
    allow_regroup : bool
        Allow a plan that moves experts to other router groups.
    then : callable, optional
        Called when all is changed; if it raises, everything is as it was. It gets the
        list of steps back, to which it may add.

    Raises
    ------
    UnsupportedError
        Unknown modules, wrapped models, quantised or tied parameters, another kind of
        optimizer.
    UsageError
        The plan does not fit the model, or the optimizer is of another model.
    NonFiniteError
        NaN or infinity where a method computes.
    PeerError
        Another rank failed.
    """
    inner = inner_model(model)
    work = _Expansion(inner, plan, optimizer, allow_regroup)
    before = sum(p.numel() for p in inner.parameters())

    def change(undo: Undo) -> None:
        with torch.inference_mode(False), torch.no_grad():  # what is made under inference_mode cannot be trained
            work.run(undo)
        if then is not None:
            then(undo)

    with Undo() as undo:
        all_or_none(lambda: change(undo))
    reset_compiled(model)
    for note in work.notes:
        warnings.warn(note, stacklevel=2)
    after = sum(p.numel() for p in inner.parameters())
    return Growth(plan.experts, [site.layer for site in work.sites], (before, after), work.notes)


def check_expansion(model: nn.Module, plan: GrowthPlan, optimizer: Any = None) -> None:
    """Raise what `expand_` would raise before it changes anything. Ranks: collective, as `expand_`."""
    _Expansion(inner_model(model), plan, optimizer, False)


class _Expansion:
    """All checks, then the change."""

    def __init__(self, model: nn.Module, plan: GrowthPlan, optimizer: Any, allow_regroup: bool) -> None:
        def prepare() -> None:
            refuse_wrapped(model)
            found = Prepared(model, plan, optimizer, allow_regroup)
            check_tensors(model, found.sites, plan.experts[0])
            found.states.check([tensor for site in found.sites for tensor in site.tensors()])
            self.numbers = found.layout.numbers(model, found.sites, found.plan)
            self.plan, self.sites, self.states, self.grower = found.plan, found.sites, found.states, found.grower
            self.notes = found.notes()

        all_or_none(prepare)
        refuse_different_plans(plan.to_json())
        self.model = model

    def run(self, undo: Undo) -> None:
        """Change everything; `undo` can take it back."""
        joiner = Joiner(self.states, undo)
        for site in self.sites:
            for experts in site.experts:
                if isinstance(experts, Packed):
                    self._grow_packed(undo, site, experts)
            self._grow_separate(undo, joiner, site)
            for rows in site.rows:
                self._grow_rows(undo, site, rows)
        joiner.join(self.model)
        for number in self.numbers:
            undo.set_attribute(number.owner, number.name, number.after)

    def _grow_packed(self, undo: Undo, site: Site, packed: Packed) -> None:
        tensor, matrices, grower, layer = packed.place.tensor, packed.matrices, self.grower, site.layer
        entries = self.states.entries(tensor)
        experts = self.plan.experts_before
        values = by_expert(tensor.detach(), matrices, experts)
        master = next((by_expert(e.tensor, matrices, experts) for e in entries if e.kind == "master"), values)
        originals = grower.originals_at(layer)
        shape = (self.plan.experts_after, *grower.shape_after(values.shape[1:], matrices))
        before_shape = tensor.shape

        def stacked(
            source: Tensor, like: Tensor, copies: Callable[[int], bool], fill: Callable[[int, Tensor], None]
        ) -> Tensor:
            out = new_tensor(shape, like)
            grower.fill_all(layer, source, out, copies, fill)
            return out.flatten(0, 1) if tensor.dim() < out.dim() else out

        def back_from(new: Tensor) -> Callable[[], Tensor]:
            """Takes the originals out of a grown tensor; it must not hold the tensor before."""
            return lambda: _taken(by_expert(new, matrices, shape[0]), originals, before_shape)

        keeps = grower.keeps_originals(layer, matrices)

        def weights(source: Tensor, like: Tensor) -> Tensor:
            return stacked(
                source,
                like,
                lambda child: grower.copies(layer, child, matrices),
                lambda child, out: grower.fill_child(layer, child, matrices, lambda e: source[e], out),
            )

        # Values from the master where there is one; copies of values alone keep their own bytes.
        grown = weights(values if keeps and grower.only_copies(layer, matrices) else master, values)
        for entry in reversed(entries):  # the master last: moments may be computed from it
            state = by_expert(entry.tensor, matrices, experts)
            if entry.kind == "master":
                new, kept = weights(master, state), keeps
            else:
                new = stacked(
                    state,
                    state,
                    lambda child: self.plan.copies_moment(layer, child),
                    lambda child, out: grower.fill_moment(
                        layer, child, matrices, entry.kind, lambda e: state[e], lambda e: master[e], out
                    ),
                )
                kept = all(self.plan.copies_moment(layer, child) for child in originals)
            self._set_state(undo, entry, new, back_from(new) if kept else None)
        undo.set_data(tensor, grown, back_from(grown) if keeps else None)

    def _set_state(self, undo: Undo, entry: Entry, new: Tensor, before: Callable[[], Tensor] | None) -> None:
        """Put a grown tensor in an optimizer's state."""
        old = entry.tensor if before is None else None
        state, key = entry.state, entry.key
        undo.add(lambda: state.__setitem__(key, before() if before is not None else old))
        state[key] = new

    def _grow_separate(self, undo: Undo, joiner: Joiner, site: Site) -> None:
        sets = [experts for experts in site.experts if isinstance(experts, Separate)]
        if not sets:
            return
        here = _ExpertsHere(self.plan, self.grower.children(site.layer), site)
        pairs: list[tuple[int, int]] = []
        made: list[list[nn.Parameter]] = []
        fetched = [_Fetched(self.states, site, each, here.needed(self.plan, site.layer)) for each in sets]
        for child in here.children:
            kept = here.kept(child)
            pairs.append((here.template(child), 0 if kept else 1))
            made.append([] if kept else [self._new_parameter(joiner, site, f, here, child) for f in fetched])
        changed = [item for f in fetched for item in self._changed_originals(site, f, here)]
        for place, values, states in changed:
            for entry, new in states:
                self._set_state(undo, entry, new, None)
            undo.set_data(place.tensor, values)
        for each in sets:
            for expert in here.leaving():
                joiner.remove(each.places[expert].tensor)
        assert site.arrange is not None
        undo.add(site.arrange(pairs, made))

    def _new_parameter(
        self, joiner: Joiner, site: Site, fetched: _Fetched, here: _ExpertsHere, child: int
    ) -> nn.Parameter:
        old = fetched.each.places[here.template(child)].tensor
        parameter = nn.Parameter(self._child_values(site, fetched, child, old), requires_grad=old.requires_grad)
        parameter.__dict__.update(old.__dict__)
        joiner.add(old, parameter, self._child_state(site, fetched, old, child))
        return parameter

    def _child_values(self, site: Site, fetched: _Fetched, child: int, like: Tensor) -> Tensor:
        matrices = fetched.each.matrices
        out = new_tensor(self.grower.shape_after(like.shape, matrices), like)
        # Values from the master where there is one; copies keep the bytes of the values.
        copies = self.grower.copies(site.layer, child, matrices)
        source = fetched.values if copies else fetched.weights
        self.grower.fill_child(site.layer, child, matrices, source, out)
        return out

    def _child_tensor(self, site: Site, fetched: _Fetched, child: int, entry: Entry) -> Tensor:
        matrices = fetched.each.matrices
        out = new_tensor(self.grower.shape_after(entry.tensor.shape, matrices), entry.tensor)
        if entry.kind == "master":
            self.grower.fill_child(site.layer, child, matrices, fetched.weights, out)
        else:
            self.grower.fill_moment(
                site.layer, child, matrices, entry.kind, fetched.of(entry.key), fetched.weights, out
            )
        return out

    def _child_state(self, site: Site, fetched: _Fetched, old: Tensor, child: int) -> dict[str, Any] | None:
        found = self.states.group_of(old)
        if found is None or old not in found[0].state:
            return None
        before = found[0].state[old]
        entries = {entry.key: entry for entry in self.states.entries(old)}
        out: dict[str, Any] = {}
        for key, value in before.items():
            if key in entries:
                out[key] = self._child_tensor(site, fetched, child, entries[key])
            else:
                out[key] = self.grower.other_state(site.layer, child, key, value)
        return out

    def _changed_originals(
        self, site: Site, fetched: _Fetched, here: _ExpertsHere
    ) -> list[tuple[Place, Tensor, list[tuple[Entry, Tensor]]]]:
        """Originals that stay, and whose values or moments the plan changes too, with what they will be."""
        out = []
        for child in filter(here.kept, here.children):
            place = fetched.each.places[here.template(child)]
            moments_stay = self.plan.copies_moment(site.layer, child)
            weights_stay = self.grower.copies(site.layer, child, fetched.each.matrices)
            if moments_stay and weights_stay:
                continue
            values = place.tensor.data if weights_stay else self._child_values(site, fetched, child, place.tensor)
            states = [
                (entry, self._child_tensor(site, fetched, child, entry))
                for entry in self.states.entries(place.tensor)
                if not (weights_stay if entry.kind == "master" else moments_stay)
            ]
            out.append((place, values, states))
        return out

    def _grow_rows(self, undo: Undo, site: Site, rows: Rows) -> None:
        tensor = rows.place.tensor
        entries = self.states.entries(tensor)
        master = next((entry.tensor for entry in entries if entry.kind == "master"), tensor.detach())
        for entry in entries:
            if entry.kind == "master":
                new = self.grower.rows(site.layer, rows, master, master)
            else:
                new = self.grower.rows_moment(site.layer, rows, entry.kind, entry.tensor)
            self._set_state(undo, entry, new, None)
        undo.set_data(tensor, self.grower.rows(site.layer, rows, master, tensor))


class _ExpertsHere:
    """Which experts this rank has before and after: equal parts of a layer, in the order of the ranks."""

    def __init__(self, plan: _core.PlanOfModel, children: list[tuple[int, int]], site: Site) -> None:
        ranks, rank = ranks_of(site.group)
        if plan.experts_after % ranks:
            raise UsageError(
                f"plan: {plan.experts_after} experts cannot be divided over the {ranks} ranks that share {site.path} "
                f"(choose a multiple of {ranks})"
            )
        before, after = plan.experts_before // ranks, plan.experts_after // ranks
        self.ranks = ranks
        self._all, self._after = children, after
        self.before = range(rank * before, (rank + 1) * before)
        self.children = range(rank * after, (rank + 1) * after)

    def kept(self, child: int) -> bool:
        """Whether a child is an original that this rank has already."""
        parent, copy = self._all[child]
        return copy == 0 and parent in self.before

    def template(self, child: int) -> int:
        """The place, among this rank's experts, of the child's parent, or of any expert if it is elsewhere."""
        parent, _ = self._all[child]
        return parent - self.before.start if parent in self.before else 0

    def leaving(self) -> list[int]:
        """The places of originals that another rank will have."""
        staying = {self._all[child][0] for child in self.children if self._all[child][1] == 0}
        return [expert - self.before.start for expert in self.before if expert not in staying]

    def needed(self, plan: _core.PlanOfModel, layer: int) -> list[set[int]]:
        """The originals that each rank computes its children from."""
        out = []
        for rank in range(self.ranks):
            wanted = set()
            for child in range(rank * self._after, (rank + 1) * self._after):
                wanted |= {*plan.sources(layer, child), (self._all[child][0] + 1) % plan.experts_before}
            out.append(wanted)
        return out


class _Fetched:
    """Parameters and states of original experts: this rank's own, and those that it needs of other ranks."""

    def __init__(self, states: OptimizerStates, site: Site, each: Separate, needed: list[set[int]]) -> None:
        self.each, self._states = each, states
        self._first, self._elsewhere = site.first_expert, {}
        ranks, rank = ranks_of(site.group)
        if ranks == 1:
            return
        kept = len(each.places)
        own = {entry.key for place in each.places for entry in states.entries(place.tensor)}
        keys = ["", *union_over_ranks(own, site.group)]
        for expert in range(kept * ranks):
            owner = expert // kept
            if not any(expert in wanted for other, wanted in enumerate(needed) if other != owner):
                continue
            for key in keys:
                like = self._own(0, key)
                tensor = self._own(expert - self._first, key) if owner == rank else torch.empty_like(like)
                broadcast(tensor, owner, site.group)
                if expert in needed[rank] and owner != rank:
                    self._elsewhere[expert, key] = tensor

    def _own(self, place: int, key: str) -> Tensor:
        tensor = self.each.places[place].tensor
        if not key:
            return tensor.detach()
        for entry in self._states.entries(tensor):
            if entry.key == key:
                return entry.tensor
        return torch.zeros_like(tensor)  # no token has reached this expert yet

    def of(self, key: str) -> Callable[[int], Tensor]:
        """A tensor of the state by original expert."""

        def source(expert: int) -> Tensor:
            found = self._elsewhere.get((expert, key))
            return found if found is not None else self._own(expert - self._first, key)

        return source

    def values(self, expert: int) -> Tensor:
        """The parameter of an original expert."""
        return self.of("")(expert)

    def weights(self, expert: int) -> Tensor:
        """Its master, if it has one."""
        masters = [e.key for e in self._states.entries(self.each.places[0].tensor) if e.kind == "master"]
        return self.of(masters[0] if masters else "")(expert)


def _taken(tensor: Tensor, where: list[int], shape: torch.Size) -> Tensor:
    return tensor.index_select(0, torch.tensor(where, device=tensor.device)).reshape(shape)
