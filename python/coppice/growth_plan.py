"""The growth plan: the parent of every expert of the expanded model, as plain data."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import operator
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from coppice import _core
from coppice.describe import describe
from coppice.errors import IoError, NotFoundError, UsageError, a_type

if TYPE_CHECKING:
    from coppice.watching import Scores


@dataclasses.dataclass
class GrowthPlan:
    """What an expansion does to each expert. The fields may be edited.

    The command line reads and writes the same plan (``coppice expand --plan`` and
    ``--dry-run``), and gives the same bytes.

    Attributes
    ----------
    experts : tuple of int
        Number of experts of a layer before and after.
    parents : dict
        For each layer with experts, the parent of every expert of the new model, in
        order. The first child of a parent is the original; the others are copies.
    expert_init, router_init, optimizer_state : str
        Methods, as ``NAME`` or ``NAME:key=value``.
    balance_bias : str
        Selection bias of a copy: its parent's (``copy``) or 0 (``zero``).
    order, select : str
        How the children were placed and their parents chosen.
    seed : int
        Seed of all random numbers.
    layer_methods : dict
        For a layer, its own ``expert_init`` or ``router_init``.
    top_k_factor, split : int
        Factor of top-K, and number of parts that each expert is cut into; 1 for neither.
    """

    experts: tuple[int, int]
    parents: dict[int, list[int]]
    expert_init: str = "copy"
    router_init: str = "copy"
    optimizer_state: str = "copy"
    balance_bias: str = "copy"
    order: str = "append"
    select: str = "uniform"
    seed: int = 0
    layer_methods: dict[int, dict[str, str]] = dataclasses.field(default_factory=dict)
    top_k_factor: int = 1
    split: int = 1

    def to_json(self) -> str:
        """The plan as JSON text, checked.

        Raises
        ------
        FormatError, UsageError
            A field does not have a valid value.
        """
        for name in ("parents", "layer_methods"):
            if not isinstance(getattr(self, name), Mapping):
                raise UsageError(f"plan: '{name}' is {getattr(self, name)!r}; wanted a dict by layer")
        fields: dict[str, Any] = {
            "coppice_plan": 1,
            "seed": str(self.seed) if isinstance(self.seed, int) and self.seed >= 2**63 else self.seed,
            "experts": self.experts,
            "order": self.order,
            "select": self.select,
            "methods": {
                "expert_init": self.expert_init,
                "router_init": self.router_init,
                "optimizer_state": self.optimizer_state,
                "balance_bias": self.balance_bias,
            },
            "parents": {str(layer): parents for layer, parents in self.parents.items()},
        }
        if self.top_k_factor != 1:
            fields["top_k_factor"] = self.top_k_factor
        if self.split != 1:
            fields["split"] = self.split
        if self.layer_methods:
            fields["layer_methods"] = {str(layer): methods for layer, methods in self.layer_methods.items()}
        return _core.checked_plan(json.dumps(fields, default=_plain))

    @classmethod
    def from_json(cls, text: str) -> GrowthPlan:
        """The plan of a JSON text. Raises as `to_json`."""
        if not isinstance(text, str):
            raise UsageError(f"text: {a_type(text)}; wanted the JSON text of a plan")
        fields = json.loads(_core.checked_plan(text))
        methods = fields["methods"]
        return cls(
            experts=(fields["experts"][0], fields["experts"][1]),
            parents={int(layer): parents for layer, parents in fields["parents"].items()},
            **methods,
            order=fields["order"],
            select=fields["select"],
            seed=int(fields["seed"]),
            layer_methods={int(layer): own for layer, own in fields.get("layer_methods", {}).items()},
            top_k_factor=fields.get("top_k_factor", 1),
            split=fields.get("split", 1),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the TOML file that ``coppice expand --plan`` and `load` read; whole or not at all.

        Raises
        ------
        UsageError, IoError
            `path` is none; the file cannot be written.
        """
        text = _core.plan_to_toml(self.to_json())
        target = pathlib.Path(_path(path))
        if not target.name:
            raise UsageError(f"path: '{path}' has no file name (give the path of the TOML file to write)")
        unfinished = target.with_name(f".{target.name}.tmp-{os.getpid()}")
        try:
            unfinished.write_text(text)
            unfinished.replace(target)
        except OSError as error:
            raise IoError(f"{target}: cannot be written: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GrowthPlan:
        """The plan of a file that `save` or ``coppice expand --dry-run`` wrote."""
        return cls.from_json(_core.plan_from_file(_path(path)))


def _path(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"path: {a_type(path)}; wanted the path of a plan's file")
    return os.fspath(path)


def plan(
    model: Any,
    experts: str | int | None = None,
    *,
    scores: Scores | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    select: str | None = None,
    temperature: float | None = None,
    metric: str | None = None,
    layer_selection: str | None = None,
    max_duplicates: int | None = None,
    expert_init: str | None = None,
    router_init: str | None = None,
    balance_bias: str | None = None,
    optimizer_state: str | None = None,
    order: str | None = None,
    allow_regroup: bool = False,
    top_k: str | None = None,
    split: int | None = None,
    recipe: str | None = None,
    seed: int | None = None,
) -> GrowthPlan:
    """Make the plan of an expansion; nothing is changed.

    The options are those of ``coppice expand``, with the same defaults.

    Parameters
    ----------
    model : module, configuration, dict or path
        A model of transformers, torchtitan or Megatron Core; or a transformers
        configuration, the dict of a ``config.json``, or a directory or file with one.
    experts : str or int
        Number of experts afterwards: ``"2x"`` (the default), ``"1.5x"`` or 48.
    scores : Scores, dict or path, optional
        What `watch` measured, or a ``scores.json``. Without scores all experts count
        the same.

    Raises
    ------
    UsageError, UnsupportedError, FormatError, NonFiniteError
        As ``coppice expand``.
    """
    given = {name: value for name, value in locals().items() if name not in ("model", "scores")}
    if metric == "output_error" and hasattr(scores, "to_json"):
        raise UsageError(
            "metric: output_error needs what each expert gave to each token, and coppice.watch sees gradients (save "
            "the model, run `coppice score` on it and give its scores.json as scores; or choose another metric)"
        )
    if not allow_regroup:
        del given["allow_regroup"]
    if isinstance(experts, int):
        given["experts"] = str(experts)
    options = {name.replace("_", "-"): value for name, value in given.items() if value is not None}
    return GrowthPlan.from_json(_core.make_plan(describe(model), json.dumps(options), _scores_text(scores)))


def _plain(value: Any) -> Any:
    """Arrays and whole numbers of numpy and torch as Python's own."""
    for convert in (operator.index, list):
        try:
            return convert(value)
        except TypeError:
            continue
    raise UsageError(f"plan: it holds {value!r}, {a_type(value)}; wanted numbers, texts, lists and dicts")


def _scores_text(scores: Any) -> str | None:
    if scores is None:
        return None
    if isinstance(scores, Mapping):
        return json.dumps(scores)
    if isinstance(scores, str | os.PathLike):
        try:
            return pathlib.Path(scores).read_text()
        except OSError as error:
            raise NotFoundError(f"{os.fspath(scores)}: {error.strerror} (give a scores.json)") from error
    if not hasattr(scores, "to_json"):
        raise UsageError(f"scores: {a_type(scores)}; wanted what coppice.watch measured, or a scores.json")
    return str(scores.to_json())
