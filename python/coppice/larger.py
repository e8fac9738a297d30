"""Fill a larger model, which the user made, with an expansion of the model that is trained."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from coppice.check_larger import check_larger, group_pairs, tensors_of
from coppice.checks import check_tensors
from coppice.errors import UnsupportedError, UsageError
from coppice.grow_tensors import Originals, TensorGrower, new_tensor
from coppice.growth_plan import GrowthPlan
from coppice.modules import layout_of
from coppice.modules.site import Rows, Site
from coppice.optimizer import Entry, OptimizerStates
from coppice.preparation import Growth, Prepared
from coppice.ranks import all_or_none, refuse_different_plans
from coppice.regions import Box, contains, count, cut, local, moved, overlap, part_here, sizes, whole
from coppice.stacks import Stack, stacks_of
from coppice.transfer import Fetched, Key, Transfer, Wish
from coppice.wrappers import plain_path, refuse_wrapped, reshard, without_ddp


def expand_into(
    model: nn.Module,
    larger: nn.Module,
    plan: GrowthPlan,
    *,
    optimizer: Any = None,
    larger_optimizer: Any = None,
    allow_regroup: bool = False,
    empty_optimizer: bool = False,
) -> Growth:
    """Fill a larger model with the expansion of a model, and its optimizer's state with the expansion of that.

    For models whose parameters cannot change their sizes: those of fully_shard, DTensors,
    DDP. Make `larger` as you made `model`, with the plan's number of experts, and its
    optimizer. Parameters, buffers, optimizer states and settings of parameter groups then
    have the bytes that `expand_` gives them. The two models may be divided over the ranks
    in different ways. Call it between two steps, and go on with `larger`. `model` and
    `optimizer` are not changed. If anything fails, throw `larger` away.

    Memory: both models and optimizer states as they are divided over ranks; beside them,
    for one parameter or one tensor of its state at a time, the originals that this rank's
    new experts are computed from (their parts, if they are copied), one matrix of a new
    expert, and one rank's part of the tensor. No rank has a whole model, layer or tensor
    of experts, unless its own new experts are computed from all of it. Router rows and
    biases are whole.

    Ranks: collective over the default process group, if there is one. If one rank fails,
    all do.

    Parameters
    ----------
    model, larger : module
        Models of transformers or torchtitan, of the same class, with the same names of
        layers. `larger` has memory, with any values. Wrappers of torch.compile and
        DistributedDataParallel are looked through.
    plan : GrowthPlan
        From ``coppice.plan(model, "2x")``, the same on all ranks.
    optimizer, larger_optimizer : torch optimizer, or a list of them, optional
        Any whose state are numbers and tensors of the parameter's shape.
    allow_regroup : bool
        Allow a plan that moves experts to other router groups.
    empty_optimizer : bool
        Take every tensor out of `optimizer` when it has been moved, so that its memory is
        free. A failure then loses the state of `optimizer`.

    Raises
    ------
    UnsupportedError
        Unknown modules, wrapped models, quantised or tied parameters, another kind of
        optimizer.
    UsageError
        The plan does not fit the model, `larger` is not the model that the plan makes of
        it, or the optimizers do not fit.
    NonFiniteError
        NaN or infinity where a method computes.
    PeerError
        Another rank failed.
    """
    made: list[_Filling] = []

    def prepare() -> None:
        if not isinstance(larger, nn.Module):
            raise UsageError(f"larger: a {type(larger).__name__}; wanted a module with the plan's number of experts")
        made.append(
            _Filling(without_ddp(model), without_ddp(larger), plan, (optimizer, larger_optimizer), allow_regroup)
        )

    all_or_none(prepare)
    refuse_different_plans(plan.to_json())
    (work,) = made
    with torch.no_grad():
        work.run(empty_optimizer)
    for note in work.notes:
        warnings.warn(note, stacklevel=2)
    counts = [sum(p.numel() for p in of.parameters()) for of in (model, larger)]
    return Growth(plan.experts, [site.layer for site in work.old.sites], (counts[0], counts[1]), work.notes)


class _Filling:
    """All checks of this rank; then what it needs of the others, and how it fills its parts."""

    def __init__(
        self,
        model: nn.Module,
        larger: nn.Module,
        plan: GrowthPlan,
        optimizers: tuple[Any, Any],
        allow_regroup: bool,
    ) -> None:
        if model is larger:
            raise UsageError("larger: it is the model itself (make another one, with the plan's number of experts)")
        for each in (model, larger):
            refuse_wrapped(each, sharded=True)
            reshard(each)
        self.old = Prepared(model, plan, optimizers[0], allow_regroup)
        if any(site.group is not None for site in self.old.sites):
            raise UnsupportedError(
                "model: each rank has modules of other experts, as in Megatron Core's expert parallel "
                "(use expand_ or coppice.megatron.expand_megatron, which send them to the ranks that need them)"
            )
        self._tensors, self._new = tensors_of(model), tensors_of(larger)
        check_tensors(model, self.old.sites, plan.experts[0], sharded=True)
        self._sites = check_larger(self.old, self._tensors, larger, layout_of(larger), self._new)
        self._new_states = OptimizerStates(optimizers[1], plan.optimizer_state)
        self._children = dict(self._single_experts())
        self._groups = group_pairs(self.old.states, self._new_states, self._tensors, self._new, self._origin)
        self.old.states.check([(path, t) for path, t in self._tensors.items() if isinstance(t, nn.Parameter)])
        self._parts = {path: part_here(path, tensor) for path, tensor in self._new.items()}
        self._sources = dict(self._all_here())
        self._kept = {path: self._other_state(path) for path in self._tensors}
        self._made: dict[str, dict[str, Tensor]] = {}
        self._all_wishes = dict(self._wishes())
        self.notes = self.old.notes()

    def _single_experts(self) -> Iterator[tuple[str, tuple[str, int, int]]]:
        """For each parameter of one new expert: its parent's parameter, the layer and the expert."""
        for site, before, after in self._stacks():
            if not after.packed:
                for child, (parent, _) in enumerate(self.old.grower.children(site.layer)):
                    yield after.paths[child], (before.paths[parent], site.layer, child)

    def _stacks(self) -> Iterator[tuple[Site, Stack, Stack]]:
        for old_site, site in zip(self.old.sites, self._sites, strict=True):
            before = stacks_of(old_site, self.old.plan.experts_before)
            after = stacks_of(site, self.old.plan.experts_after)
            yield from ((old_site, *both) for both in zip(before, after, strict=True))

    def _origin(self, path: str) -> str:
        return self._children[path][0] if path in self._children else path

    def _entries(self, path: str) -> list[Entry]:
        """The tensors of the optimizer's state of an old parameter that have its shape."""
        return self.old.states.entries(self._tensors[path])

    def _all_here(self) -> Iterator[tuple[Key, tuple[Tensor, Box, tuple[int, ...]]]]:
        """What this rank has of the model and its optimizer's state."""
        for path, tensor in self._tensors.items():
            here, shape = part_here(path, tensor), tuple(tensor.shape)
            yield (path, ""), (local(tensor), here, shape)
            for entry in self._entries(path):
                yield (path, entry.key), (local(entry.tensor), here, shape)

    def _other_state(self, path: str) -> dict[str, Any] | None:
        """The state of an old parameter, with None where a tensor of its shape is."""
        state = self.old.states.of(self._tensors[path])
        tensors = {entry.key for entry in self._entries(path)}
        return None if state is None else {key: None if key in tensors else value for key, value in state.items()}

    def run(self, empty_optimizer: bool) -> None:
        """Fill everything."""
        transfer = Transfer(self._sources)
        self._sources.clear()

        def forget(key: Key) -> None:
            if empty_optimizer and key[1] and key[0] in self._tensors:
                transfer.forget(key)
                for entry in self._entries(key[0]):
                    if entry.key == key[1]:
                        del entry.state[entry.key]

        transfer.run(self._all_wishes, forget)
        all_or_none(self._finish)

    def _finish(self) -> None:
        """What is no part of a tensor: states, and settings of groups."""
        self._set_states()
        for before, after in self._groups:
            for key, value in before.items():
                if key != "params":
                    after[key] = value.clone() if isinstance(value, Tensor) else value

    def _wishes(self) -> Iterator[tuple[Key, Wish]]:
        grown: set[str] = set()
        for site, before, after in self._stacks():
            experts = _Experts(self.old.grower, site.layer, before, after)
            for index, path in enumerate(after.paths):
                children = list(range(self.old.plan.experts_after)) if after.packed else [index]
                grown.add(path)
                yield from self._expert_wishes(experts, path, children)
        for site in self.old.sites:
            for rows in site.rows:
                path = plain_path(rows.place.path)
                grown.add(path)
                yield from self._row_wishes(site.layer, rows, path)
        for path in self._new.keys() - grown:
            yield (path, ""), self._copy_wish(path, None)
            for entry in self._entries(path):
                yield (path, entry.key), self._copy_wish(path, entry)

    def _expert_wishes(self, experts: _Experts, path: str, children: list[int]) -> Iterator[tuple[Key, Wish]]:
        entries = self._entries(self._origin(path))
        master = next((entry.key for entry in entries if entry.kind == "master"), "")
        yield (path, ""), self._expert_wish(path, None, experts, [experts.values(child, master) for child in children])
        for entry in entries:
            if entry.kind == "master":
                recipes = [experts.weights(child, master) for child in children]
            else:
                recipes = [experts.moment(child, entry, master) for child in children]
            yield (path, entry.key), self._expert_wish(path, entry, experts, recipes)

    def _expert_wish(self, path: str, entry: Entry | None, experts: _Experts, recipes: list[Recipe]) -> Wish:
        """Of the experts in a new tensor, those in this rank's part are made by their recipes."""
        part, target_of = self._parts[path], self._target(path, entry)
        boxes: dict[Key, list[Box]] = {}
        steps = [step for recipe in recipes for step in experts.steps(recipe, part, boxes)]

        def fill(fetched: Fetched) -> None:
            target = target_of()
            for step in steps:
                step(target, fetched)

        return Wish(boxes, fill, local(self._new[path]).device)

    def _row_wishes(self, layer: int, rows: Rows, path: str) -> Iterator[tuple[Key, Wish]]:
        entries = self._entries(path)
        master = next((entry.key for entry in entries if entry.kind == "master"), "")
        grower = self.old.grower

        def values(before: Tensor, like: Tensor) -> Tensor:
            return grower.rows(layer, rows, before, like)

        def moment(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda before, like: grower.rows_moment(layer, rows, kind, before)

        yield (path, ""), self._row_wish(path, None, master, values)
        for entry in entries:
            make = values if entry.kind == "master" else moment(entry.kind)
            yield (path, entry.key), self._row_wish(path, entry, entry.key, make)

    def _row_wish(self, path: str, entry: Entry | None, source: str, make: Callable[[Tensor, Tensor], Tensor]) -> Wish:
        """A tensor with a row for each expert is computed whole: they are small."""
        part, target_of = self._parts[path], self._target(path, entry)
        old = whole(self._tensors[path].shape)
        boxes = {(path, source): [old]} if count(part) else {}

        def fill(fetched: Fetched) -> None:
            target = target_of()
            if count(part):
                after = make(fetched.part((path, source), old), target)
                target.copy_(cut(after, whole(after.shape), part))

        return Wish(boxes, fill, local(self._new[path]).device)

    def _copy_wish(self, path: str, entry: Entry | None) -> Wish:
        part, target_of = self._parts[path], self._target(path, entry)
        key = "" if entry is None else entry.key

        def fill(fetched: Fetched) -> None:
            target = target_of()
            if count(part):
                target.copy_(fetched.part((path, key), part))

        return Wish({(path, key): [part]} if count(part) else {}, fill, local(self._new[path]).device)

    def _target(self, path: str, entry: Entry | None) -> Callable[[], Tensor]:
        """Gives this rank's part of a new parameter, or of a new tensor of its state, which is made then."""
        parameter = self._new[path]
        if entry is None:
            return lambda: local(parameter)
        key, dtype = entry.key, entry.tensor.dtype

        def made() -> Tensor:
            new = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
            self._made.setdefault(path, {})[key] = new
            return local(new)

        return made

    def _set_states(self) -> None:
        grower = self.old.grower
        optimizers = {
            id(p): optimizer
            for optimizer in self._new_states.optimizers
            for g in optimizer.param_groups
            for p in g["params"]
        }
        for path, parameter in self._new.items():
            kept = self._kept[self._origin(path)]
            if kept is None:
                continue
            state: dict[str, Any] = {}
            for key, value in kept.items():
                if value is None and key in self._made.get(path, {}):
                    state[key] = self._made[path][key]
                elif path in self._children:
                    state[key] = grower.other_state(*self._children[path][1:], key, value)
                else:
                    state[key] = value.clone() if isinstance(value, Tensor) else value
                if isinstance(state[key], Tensor) and state[key].device.type != "cpu":
                    state[key] = state[key].to(parameter.device)
            optimizers[id(parameter)].state[parameter] = state


@dataclasses.dataclass
class Recipe:
    """How the tensor of one new expert is made.

    Attributes
    ----------
    copied : str or None
        It has the bytes of this tensor of its parent: a tensor of the optimizer's state, or "" for the parameter.
    needs : dict
        Otherwise: the originals whose tensors it is computed from, by those tensors' names.
    make : callable
        Computes it, given what returns a tensor of an original, and a tensor to fill.
    """

    child: int
    copied: str | None = None
    needs: dict[str, set[int]] = dataclasses.field(default_factory=dict)
    make: Callable[[Callable[[str], Originals], Tensor], None] = lambda source, out: None


class _Experts:
    """The recipes for the experts of one layer and role."""

    def __init__(self, grower: TensorGrower, layer: int, before: Stack, after: Stack) -> None:
        self._grower, self._layer = grower, layer
        self._before, self._after = before, after
        self._matrices = before.matrices
        self._only_copies = grower.only_copies(layer, before.matrices)

    def values(self, child: int, master: str) -> Recipe:
        """Of the master, if there is one; copies keep the bytes of the values, as in `expand_`."""
        keeps = self._only_copies if self._after.packed else self._grower.copies(self._layer, child, self._matrices)
        return self.weights(child, "" if keeps else master)

    def weights(self, child: int, source: str) -> Recipe:
        """Of the parameter or its master."""
        grower, layer, matrices = self._grower, self._layer, self._matrices
        if grower.copies(layer, child, matrices):
            return Recipe(child, source)
        return Recipe(
            child,
            needs={source: grower.sources(layer, child)},
            make=lambda of, out: grower.fill_child(layer, child, matrices, of(source), out),
        )

    def moment(self, child: int, entry: Entry, master: str) -> Recipe:
        """Of a moment."""
        grower, layer, matrices, key, kind = self._grower, self._layer, self._matrices, entry.key, entry.kind
        if grower.copies_moment(layer, child, matrices):
            return Recipe(child, key)
        needs = {key: grower.moment_sources(layer, child), master: grower.sources(layer, child)}
        return Recipe(
            child,
            needs={} if grower.zeroes_moment(layer, child) else needs,
            make=lambda of, out: grower.fill_moment(layer, child, matrices, kind, of(key), of(master), out),
        )

    def steps(
        self, recipe: Recipe, part: Box, boxes: dict[Key, list[Box]]
    ) -> Iterator[Callable[[Tensor, Fetched], object]]:
        """What fills a part of the new tensor by a recipe; adds to `boxes` what it needs."""
        _, box = self._after.place(recipe.child)
        here = overlap(box, part)
        if here is None:
            return
        if recipe.copied is not None:
            parent = self._grower.children(self._layer)[recipe.child][0]
            path, origin = self._before.place(parent)
            source, key = moved(here, box, origin), (path, recipe.copied)
            boxes.setdefault(key, []).append(source)
            yield lambda target, fetched: cut(target, part, here).copy_(fetched.part(key, source))
            return
        for name, experts in recipe.needs.items():
            for expert in experts:
                path, origin = self._before.place(expert)
                boxes.setdefault((path, name), []).append(origin)
        yield lambda target, fetched: self._make(recipe, box, here, part, target, fetched)

    def _make(self, recipe: Recipe, box: Box, here: Box, part: Box, target: Tensor, fetched: Fetched) -> None:
        def of(name: str) -> Originals:
            def original(expert: int) -> Tensor:
                path, origin = self._before.place(expert)
                return self._before.one_of(fetched.part((path, name), origin))

            return original

        goes_to = cut(target, part, here)
        if contains(part, box):
            recipe.make(of, self._after.one_of(goes_to))
            return
        matrix = new_tensor(sizes(box), target)
        recipe.make(of, self._after.one_of(matrix))
        goes_to.copy_(cut(matrix, box, here))
