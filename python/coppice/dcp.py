"""Expand distributed checkpoints of torchtitan and Megatron Core, tensor by tensor, with torch's reader and writer."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import pathlib
import pickle
import shutil
import sys
import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_saver import save

from coppice import _core
from coppice.checkpoint_names import BUCKETS, SINGLE, ExpertName, expert_name, extra_name
from coppice.errors import (
    Error,
    FormatError,
    IoError,
    NotFoundError,
    UnsupportedError,
    UsageError,
    a_type,
    check_count,
)
from coppice.grow_tensors import TensorGrower
from coppice.growth_plan import GrowthPlan
from coppice.modules.site import Matrices, Place, Rows

__all__ = ["describe_checkpoint", "expand_checkpoint", "plan_checkpoint"]


class _Region(LoadPlanner):
    """Reads one region of one tensor."""

    def __init__(self, out: Tensor) -> None:
        self._out = out

    def set_up_planner(self, *arguments: Any, **named: Any) -> None:
        pass

    def create_local_plan(self) -> LoadPlan:
        raise NotImplementedError

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise NotImplementedError

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        raise NotImplementedError

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        raise NotImplementedError

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """Where the item goes."""
        out = self._out
        for dimension, (begin, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            out = out.narrow(dimension, begin, length)
        return out

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing: the reader has copied into `out`."""


class _Bytes(_Region):
    """Reads one entry that is no tensor."""

    def __init__(self) -> None:
        super().__init__(torch.empty(0))
        self.value = BytesIO()

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        """Keep them."""
        self.value = value


class _Source:
    """The checkpoint that is read; it remembers the last few regions."""

    _KEPT = 3  # a tensor, its weights, its master

    def __init__(self, directory: pathlib.Path) -> None:
        if not (directory / ".metadata").is_file():
            raise NotFoundError(
                f"{directory}: has no .metadata; wanted a directory of torch.distributed.checkpoint "
                "(of torchtitan, such as checkpoint/step-1000, or of Megatron Core, such as iter_0001000)"
            )
        self.directory = directory
        self._reader = FileSystemReader(directory)
        try:
            self.metadata: Metadata = self._reader.read_metadata()
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError) as error:
            raise FormatError(f"{directory}/.metadata: cannot be read: {error} (the checkpoint is damaged)") from error
        self._reader.set_up_storage_reader(self.metadata, is_coordinator=True)
        self._regions: dict[tuple[Any, ...], Tensor] = {}

    def tensor(self, key: str) -> TensorStorageMetadata:
        """What the checkpoint says of a tensor."""
        return cast(TensorStorageMetadata, self.metadata.state_dict_metadata[key])

    def read(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """A region of a tensor."""
        name = (key, tuple(offsets), tuple(sizes))
        if name not in self._regions:
            while len(self._regions) >= self._KEPT:
                self._regions.pop(next(iter(self._regions)))
            out = torch.empty(tuple(sizes), dtype=self.tensor(key).properties.dtype)
            chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
            items = create_read_items_for_chunk_list(key, self.tensor(key), [chunk])
            self._run(items, _Region(out), key)
            self._regions[name] = out
        return self._regions[name]

    def read_bytes(self, key: str) -> BytesIO:
        """An entry that is no tensor."""
        index, zero = MetadataIndex(key), torch.Size([0])
        planner = _Bytes()
        self._run([ReadItem(LoadItemType.BYTE_IO, index, zero, index, zero, zero)], planner, key)
        return planner.value

    def _run(self, items: list[ReadItem], planner: _Region, key: str) -> None:
        try:
            self._reader.read_data(LoadPlan(items), planner).wait()
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            why = str(error) or type(error).__name__
            raise FormatError(f"{self.directory}: '{key}' cannot be read: {why} (the checkpoint is damaged)") from error


@dataclasses.dataclass
class _Experts:
    """The keys of a checkpoint that grow, and what they say of the model."""

    names: dict[str, ExpertName]
    facts: dict[str, Any]
    gated: bool
    stacked_layers: int

    @property
    def experts(self) -> int:
        return int(self.facts["num_experts"])

    def layers_of(self, name: ExpertName) -> list[int]:
        """The layers that one tensor has."""
        return list(range(self.stacked_layers)) if name.layer is None else [name.layer]

    def matrices(self, name: ExpertName) -> Matrices | None:
        """Of experts; those without a gate have only up in fc1."""
        if name.matrices is None or self.gated:
            return name.matrices
        return Matrices(name.matrices.role.replace("expert_gate_up", "expert_up"))


def _find_experts(source: _Source) -> _Experts:
    keys = source.metadata.state_dict_metadata
    for key in keys:
        if SINGLE.search(key):
            raise UnsupportedError(
                f"{source.directory}: '{key}' is the tensor of one expert; wanted one tensor for all experts "
                "(save without singleton_local_shards)"
            )
        if BUCKETS.search(key):
            raise UnsupportedError(
                f"{source.directory}: '{key}' is a piece of the distributed optimizer's buckets, which have no "
                "parameters' shapes (save with the fully reshardable format: --dist-ckpt-optim-fully-reshardable)"
            )
    names = {key: name for key in keys if (name := expert_name(key)) and isinstance(keys[key], TensorStorageMetadata)}
    routers = {key: name for key, name in names.items() if name.role == "router" and name.kind == "value"}
    downs = {k: n for k, n in names.items() if n.matrices and n.matrices.role == "expert_down" and n.kind == "value"}
    if not routers or not downs:
        raise UnsupportedError(
            f"{source.directory}: no key is named like the experts and routers of torchtitan "
            "(layers.0.moe.experts.w1) or of Megatron Core (layers.mlp.experts.experts.linear_fc1.weight); "
            f"it has {', '.join(list(keys)[:3])} ... (expand a Hugging Face checkpoint with `coppice expand`)"
        )
    for key, name in names.items():
        if name.kind not in ("value", "master", "exp_avg", "exp_avg_sq"):
            raise UnsupportedError(
                f"{source.directory}: '{key}': it is not known what '{name.kind}' of the optimizer's state is; "
                "wanted exp_avg, exp_avg_sq, fp32_param and step, as Adam has them"
            )
    router, router_name = next(iter(routers.items()))
    axis = 0 if router_name.layer is not None else 1
    sizes = {source.tensor(key).size[0 if name.layer is not None else 1] for key, name in routers.items()}
    if len(sizes) > 1:
        raise UnsupportedError(
            f"{source.directory}: layers have {sorted(sizes)} experts; wanted the same number in all"
        )
    stacked = 0 if axis == 0 else int(source.tensor(router).size[0])
    layers = sorted({name.layer for name in routers.values() if name.layer is not None} | set(range(stacked)))
    down_key = next(iter(downs))
    width = int(source.tensor(down_key).size[-1])
    fc1 = [k for k, n in names.items() if n.kind == "value" and n.matrices and n.matrices.role == "expert_gate_up"]
    gated = not fc1 or int(source.tensor(fc1[0]).size[-2]) == 2 * width
    facts = {
        "num_layers": layers[-1] + 1,
        "moe_layers": layers,
        "num_experts": sizes.pop(),
        "top_k": 1,
        "expert_width": width,
        "gate": "unknown",
        "renormalise": False,
        "router_bias": any(name.role == "router_bias" for name in names.values()),
        "selection_bias": any(name.role == "selection_bias" for name in names.values()),
        "num_groups": 1,
        "top_groups": 1,
    }
    out = _Experts(names, facts, gated, stacked)
    _refuse_missing(source, out)
    for key, name in names.items():
        size = source.tensor(key).size
        at = 0 if name.layer is not None else 1
        if len(size) <= at or size[at] != out.experts:
            raise UnsupportedError(
                f"{source.directory}: '{key}' is {list(size)}; wanted {out.experts} experts in dimension {at}"
            )
    return out


def _refuse_missing(source: _Source, experts: _Experts) -> None:
    """Every layer has the same tensors of experts, routers and their state."""
    by_layer: dict[int | None, set[tuple[str, str]]] = {}
    for name in experts.names.values():
        role = name.matrices.role if name.matrices else name.role
        by_layer.setdefault(name.layer, set()).add((role, name.kind))
    every = set().union(*by_layer.values())
    missing = [
        f"layer {layer}: {role}" + (f" ({kind})" if kind != "value" else "")
        for layer, found in sorted(by_layer.items(), key=lambda item: -1 if item[0] is None else item[0])
        for role, kind in sorted(every - found)
    ]
    if missing:
        raise FormatError(
            f"{source.directory}: tensors are missing that other layers have: {'; '.join(missing[:8])}"
            + (" ..." if len(missing) > 8 else "")
            + " (the checkpoint is damaged, or its names are of another library)"
        )


def describe_checkpoint(directory: str | os.PathLike[str], *, num_groups: int = 1) -> str:
    """What `_core` needs to know of the model in a distributed checkpoint, as JSON."""
    return _described(_find_experts(_Source(_path("directory", directory))), num_groups)


def _described(experts: _Experts, num_groups: int) -> str:
    check_count("num_groups", num_groups, 1, "the number of the model's router groups, 1 for none")
    return json.dumps({"modules": experts.facts | {"num_groups": num_groups}})


def _path(name: str, path: str | os.PathLike[str]) -> pathlib.Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise UsageError(f"{name}: {path!r}; wanted the path of a directory")
    return pathlib.Path(path)


def plan_checkpoint(
    directory: str | os.PathLike[str], experts: str | int | None = None, *, num_groups: int = 1, **options: Any
) -> GrowthPlan:
    """The plan of an expansion of a distributed checkpoint; options as those of `coppice.plan`.

    Parameters
    ----------
    num_groups : int
        Router groups of the model, which the checkpoint does not say.
    """
    given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    if experts is not None:
        given["experts"] = str(experts)
    if given.get("top-k") or given.get("split"):
        raise UsageError(
            "top_k and split: a distributed checkpoint does not say how gates are computed (leave them out)"
        )
    return GrowthPlan.from_json(
        _core.make_plan(describe_checkpoint(directory, num_groups=num_groups), json.dumps(given), None)
    )


class _Writer(SavePlanner):
    """Makes each piece when the writer asks for it."""

    def __init__(self, source: _Source, experts: _Experts, plan: GrowthPlan, grower: TensorGrower) -> None:
        self._source, self._found, self._plan, self._grower = source, experts, plan, grower
        keys = source.metadata.state_dict_metadata
        of_parameter: dict[tuple[str, str], str] = {}
        for key, name in experts.names.items():
            of_parameter[name.parameter, name.kind] = key
        self._of_parameter = of_parameter
        self._bytes: dict[str, str] = {}  # keys of entries that are no tensors, and where their bytes are
        self._after: dict[str, Any] = {}
        for key, value in keys.items():
            for after in self._names_after(key, value):
                self._after[after] = self._metadata_after(key, value)

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        pass

    def _names_after(self, key: str, value: Any) -> list[str]:
        """The key itself, or one for each child of an expert."""
        if not isinstance(value, BytesStorageMetadata):
            return [key]
        extra = extra_name(key)
        if extra is None:
            self._bytes[key] = key
            return [key]
        children = self._grower.children(extra.layer)
        names = [extra.of_child(i, len(children)) for i, (parent, _) in enumerate(children) if parent == extra.expert]
        self._bytes |= dict.fromkeys(names, key)
        return names

    def _metadata_after(self, key: str, before: Any) -> Any:
        name = self._found.names.get(key)
        if name is None or not isinstance(before, TensorStorageMetadata):
            return before
        axis = 0 if name.layer is not None else 1
        scale = self._plan.experts[1] / self._plan.experts[0]

        def moved(chunk: ChunkStorageMetadata) -> ChunkStorageMetadata:
            begin, end = (round(x * scale) for x in (chunk.offsets[axis], chunk.offsets[axis] + chunk.sizes[axis]))
            offsets, sizes = list(chunk.offsets), list(chunk.sizes)
            offsets[axis], sizes[axis] = begin, end - begin
            return ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))

        size = list(before.size)
        size[axis] = self._plan.experts[1]
        return dataclasses.replace(before, size=torch.Size(size), chunks=[moved(chunk) for chunk in before.chunks])

    def create_local_plan(self) -> SavePlan:
        """One item for each piece, with the pieces of a tensor together."""
        items = []
        for key, value in self._after.items():
            if isinstance(value, BytesStorageMetadata):
                items.append(WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO))
                continue
            for index, chunk in enumerate(value.chunks):
                data = TensorWriteData(chunk, value.properties, value.size)
                items.append(WriteItem(MetadataIndex(key, chunk.offsets, index), WriteItemType.SHARD, tensor_data=data))
        return SavePlan(items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """The metadata of the source, with other sizes."""
        metadata = copy.copy(self._source.metadata)
        metadata.state_dict_metadata = self._after
        if hasattr(metadata, "mcore_data"):
            metadata.mcore_data = copy.deepcopy(metadata.mcore_data)
        return all_plans, metadata

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | BytesIO:
        """The bytes of an item."""
        key = write_item.index.fqn
        if write_item.type == WriteItemType.BYTE_IO:
            return self._source.read_bytes(self._bytes[key])
        data = write_item.tensor_data
        assert data is not None and data.chunk is not None
        offsets, sizes = data.chunk.offsets, data.chunk.sizes
        name = self._found.names.get(key)
        if name is None:
            return self._source.read(key, offsets, sizes)
        try:
            return self._grown(key, name, offsets, sizes)
        except Error as error:
            if str(self._source.directory) in str(error):
                raise
            raise type(error)(f"{self._source.directory}: '{key}': {error}") from error

    def _grown(self, key: str, name: ExpertName, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        if name.layer is not None:
            return self._layer(key, name, name.layer, 0)[_window(offsets, sizes)].contiguous()
        layers = range(offsets[0], offsets[0] + sizes[0])
        inner = _window(offsets[1:], sizes[1:])
        children = range(offsets[1], offsets[1] + sizes[1])
        return torch.stack([self._layer(key, name, layer, layer, children)[inner] for layer in layers])

    def _layer(self, key: str, name: ExpertName, layer: int, at: int, children: range | None = None) -> Tensor:
        """A tensor of one layer after the expansion; of others than `children` it has no values."""
        before = self._originals(key, name, at)
        matrices, grower = self._found.matrices(name), self._grower
        if matrices is None:
            return self._rows(name, layer, at, before)
        out = torch.empty((self._plan.experts[1], *before.shape[1:]), dtype=before.dtype)
        best = self._best(name, at, before)
        for child in children if children is not None else range(len(out)):
            if name.kind in ("value", "master"):
                copies = grower.copies(layer, child, matrices)
                values = before if name.kind == "master" or copies else best
                grower.fill_child(layer, child, matrices, lambda e: values[e], out[child])
            else:
                grower.fill_moment(
                    layer, child, matrices, name.kind, lambda e: before[e], lambda e: best[e], out[child]
                )
        return out

    def _rows(self, name: ExpertName, layer: int, at: int, before: Tensor) -> Tensor:
        rows = Rows(Place(torch.nn.Module(), "", ""), name.role)
        if name.kind in ("exp_avg", "exp_avg_sq"):
            return self._grower.rows_moment(layer, rows, name.kind, before)
        return self._grower.rows(layer, rows, self._best(name, at, before), before)

    def _originals(self, key: str, name: ExpertName, at: int) -> Tensor:
        size = self._source.tensor(key).size
        if name.layer is not None:
            return self._source.read(key, [0] * len(size), size)
        return self._source.read(key, [at, *[0] * (len(size) - 1)], [1, *size[1:]])[0]

    def _best(self, name: ExpertName, at: int, before: Tensor) -> Tensor:
        """The most exact weights of this parameter: fp32 masters where there are any."""
        for kind in ("master", "value"):
            key = self._of_parameter.get((name.parameter, kind))
            if key is not None:
                return self._originals(key, self._found.names[key], at)
        return before


def _window(offsets: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))


def expand_checkpoint(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    plan: GrowthPlan,
    *,
    num_groups: int = 1,
) -> None:
    """Expand a directory of torch.distributed.checkpoint, with the optimizer's state in it.

    The new directory has the same keys, divided into pieces as before, and the library
    that wrote the old one reads it for a model with the plan's number of experts. It
    appears whole or not at all.

    Memory: the experts of one layer of a parameter, with those of its master weights and
    of the expanded layer; at most four of the largest tensors.

    Parameters
    ----------
    src, out : path
        The old directory, which is only read, and the new one, which must not exist.
    plan : GrowthPlan
        From `plan_checkpoint`, or a plan made for the model in memory.
    num_groups : int
        Router groups of the model.

    Raises
    ------
    NotFoundError, FormatError, IoError
        No such directory, a damaged one, or one that cannot be written.
    UnsupportedError
        Keys that are not named as those of torchtitan or Megatron Core are.
    """
    source, target = _Source(_path("src", src)), _path("out", out)
    if not isinstance(plan, GrowthPlan):
        raise UsageError(f"plan: {a_type(plan)}; wanted what plan_checkpoint, coppice.plan or GrowthPlan.load returns")
    if target.exists():
        raise UsageError(f"{target}: exists; wanted a new directory")
    if target.resolve().is_relative_to(source.directory.resolve()):
        raise UsageError(f"{target}: lies in {source.directory}, which is only read (choose another directory)")
    if not target.absolute().parent.is_dir():
        raise IoError(f"{target}: cannot be written: {target.absolute().parent} is no directory (make it first)")
    experts = _find_experts(source)
    description = _described(experts, num_groups)
    grower = TensorGrower(_core.PlanOfModel(plan.to_json(), description, False), plan.optimizer_state)
    unfinished = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is what is wanted
            save(
                {},
                storage_writer=FileSystemWriter(unfinished, thread_count=1, sync_files=True),
                planner=_Writer(source, experts, plan, grower),
                no_dist=True,
            )
        _copy_companions(source.directory, unfinished, plan)
        unfinished.rename(target)
    except BaseException as error:  # torch's CheckpointException is no Exception
        cause = _cause(error)
        if cause is error:
            raise
        raise cause from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _cause(error: BaseException) -> BaseException:
    """What stopped torch's writer, which wraps it, or hides it behind what went wrong while it closed its file."""
    inside: list[BaseException] = [error]
    for link in inside:
        failures = [inner for inner, _ in link.failures.values()] if isinstance(link, CheckpointException) else []
        inside += [e for e in (*failures, link.__cause__, link.__context__) if e is not None and e not in inside]
    for kind in (KeyboardInterrupt, Error, OSError):
        for inner in inside:
            if isinstance(inner, kind):
                is_plain = isinstance(inner, OSError) and not isinstance(inner, Error)
                return IoError(f"the output cannot be written: {inner}") if is_plain else inner
    return error


def _copy_companions(source: pathlib.Path, target: pathlib.Path, plan: GrowthPlan) -> None:
    """Files beside the tensors; Megatron's arguments get the new number of experts."""
    for file in source.iterdir():
        if not file.is_file() or file.suffix == ".distcp" or file.name == ".metadata":
            continue
        if file.name == "common.pt":
            common = torch.load(file, map_location="cpu", weights_only=False)
            arguments = common.get("args") if isinstance(common, dict) else None
            for name in ("num_experts", "num_moe_experts"):
                if getattr(arguments, name, None) == plan.experts[0]:
                    setattr(arguments, name, plan.experts[1])
            torch.save(common, target / file.name)
        else:
            shutil.copyfile(file, target / file.name)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``coppice-dcp``."""
    parser = argparse.ArgumentParser(
        prog="coppice-dcp",
        description="Expand a distributed checkpoint of torchtitan or Megatron Core, with its optimizer state.",
    )
    parser.add_argument("src", metavar="SRC", type=pathlib.Path, help="directory with a .metadata (never changed)")
    parser.add_argument("out", metavar="OUT", type=pathlib.Path, help="the expanded directory; must not exist")
    parser.add_argument("--plan", type=pathlib.Path, help="carry out the plan in this TOML file")
    parser.add_argument("--groups", type=int, default=1, help="router groups of the model (default: 1)")
    options = ("experts", "seed", "expert-init", "router-init", "balance-bias", "optimizer-state", "order")
    for name in options:
        parser.add_argument(
            f"--{name}", help=f"as that of `coppice expand`{' (default: 2x)' if name == 'experts' else ''}"
        )
    asked = parser.parse_args(arguments)
    given = {name: value for name in options if (value := getattr(asked, name.replace("-", "_"))) is not None}
    try:
        if asked.plan and given:
            raise UsageError(f"--{next(iter(given))}: it has no effect here; the plan file decides it (leave it out)")
        given = {name.replace("-", "_"): value for name, value in given.items()}
        if "seed" in given:
            if not given["seed"].isdecimal():
                raise UsageError(f"--seed: '{given['seed']}' is no whole number")
            given["seed"] = int(given["seed"])
        plan = (
            GrowthPlan.load(asked.plan) if asked.plan else plan_checkpoint(asked.src, num_groups=asked.groups, **given)
        )
        expand_checkpoint(asked.src, asked.out, plan, num_groups=asked.groups)
    except Error as error:
        print(f"coppice-dcp: error: {error}", file=sys.stderr)
        return _status(error)
    except KeyboardInterrupt:
        print(f"coppice-dcp: stopped; nothing of {asked.out} is left", file=sys.stderr)
        return 130
    print(f"wrote {asked.out}: {plan.experts[0]} -> {plan.experts[1]} experts in {len(plan.parents)} layers")
    return 0


def _status(error: Error) -> int:
    """The exit status that the command `coppice` has for this kind of error."""
    if isinstance(error, UsageError):
        return 2
    return 4 if isinstance(error, IoError) else 3


def command() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    command()
