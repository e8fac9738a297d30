"""What the commands return: the numbers that a program asks for, and all that was said."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command says.

    Attributes
    ----------
    details : dict
        The object that the command line prints with ``--json``.
    text : str
        What the command line prints without it.
    """

    details: dict[str, Any] = dataclasses.field(repr=False)
    text: str = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class _Written(Result):
    parameters: tuple[int, int]
    active_parameters: tuple[int, int]
    exact: bool | None
    exactness: str
    out: pathlib.Path | None
    bytes_written: int
    missing_parts: list[int]


def _written(details: dict[str, Any], text: str) -> dict[str, Any]:
    """The fields of `_Written`; after a dry run nothing has been written."""
    return {
        "details": details,
        "text": text,
        "parameters": tuple(details["parameters"]),
        "active_parameters": tuple(details["active_parameters"]),
        "exact": details["exact"],
        "exactness": details["exactness"],
        "out": pathlib.Path(details["out"]) if "out" in details else None,
        "bytes_written": details.get("bytes_written", 0),
        "missing_parts": details.get("missing_parts", []),
    }


@dataclasses.dataclass(frozen=True)
class Expansion(_Written):
    """How a model was expanded.

    Attributes
    ----------
    experts : tuple of int
        Experts per layer before and after.
    parameters, active_parameters : tuple of int
        Number of parameters, and of those that compute one token, before and after.
    exact : bool or None
        Whether the new model computes the same function; None if that cannot be decided.
    exactness : str
        The reason, as a sentence.
    out : pathlib.Path or None
        The directory that was written; None after a dry run.
    bytes_written : int
        By this process, and by the runs that it continued.
    missing_parts : list of int
        Parts of several (option `part`) that are not written yet; empty if `out` is complete.
    """

    experts: tuple[int, int]

    @classmethod
    def of(cls, details: dict[str, Any], text: str) -> Expansion:
        """From what the command says."""
        before, after = details["experts"]
        return cls(experts=(before, after), **_written(details, text))


@dataclasses.dataclass(frozen=True)
class Conversion(_Written):
    """How a dense model was converted, or a Mixture of Experts averaged.

    Attributes
    ----------
    families : tuple of str
        The model type before and after.
    experts, top_k : int
        Experts per layer and per token afterwards; 0 for a dense model.
    losses : list of str
        What the new family cannot express, each as a sentence.
    parameters, active_parameters, exact, exactness, out, bytes_written, missing_parts
        As in `Expansion`.
    """

    families: tuple[str, str]
    experts: int
    top_k: int
    losses: list[str]

    @classmethod
    def of(cls, details: dict[str, Any], text: str) -> Conversion:
        """From what the command says."""
        before, after = details["families"]
        return cls(
            families=(before, after),
            experts=details["experts"],
            top_k=details["top_k"],
            losses=details["losses"],
            **_written(details, text),
        )


@dataclasses.dataclass(frozen=True)
class Verification(Result):
    """The result of a check.

    Attributes
    ----------
    ok : bool
        Whether every tensor, configuration and file is accounted for.
    problems : list of str
        Each a sentence that names a tensor, a key or a file; empty if `ok`.
    not_compared : list of str
        What could not be compared.
    """

    ok: bool
    problems: list[str]
    not_compared: list[str]

    @classmethod
    def of(cls, details: dict[str, Any], text: str) -> Verification:
        """From what the command says."""
        return cls(details, text, details["ok"], details["problems"], details["not_compared"])


@dataclasses.dataclass(frozen=True)
class Inspection(Result):
    """What a model is.

    Attributes
    ----------
    family : str
        The model type of config.json.
    layers, moe_layers : int
        All layers, and those with experts.
    experts, top_k : int
        Experts per layer and per token; 0 for a dense model.
    parameters, active_parameters : int
        Number of parameters, and of those that compute one token.
    bytes : int
        Of all tensors on disk.
    digest : str
        SHA-256 that stands for the model in lineages and scores.
    lineage : dict or None
        Contents of coppice.json: the expansions that made the model.
    """

    family: str
    layers: int
    moe_layers: int
    experts: int
    top_k: int
    parameters: int
    active_parameters: int
    bytes: int
    digest: str
    lineage: dict[str, Any] | None = dataclasses.field(repr=False)

    @classmethod
    def of(cls, details: dict[str, Any], text: str) -> Inspection:
        """From what the command says."""
        return cls(
            details,
            text,
            family=details["model_type"],
            layers=details["layers"],
            moe_layers=details["moe_layers"],
            experts=details["experts"],
            top_k=details["top_k"],
            parameters=details["parameters"]["total"],
            active_parameters=details["parameters"]["active"],
            bytes=details["bytes"]["total"],
            digest=details["digest"],
            lineage=details["lineage"],
        )


@dataclasses.dataclass(frozen=True)
class Inference(Result):
    """What was inferred of a family that no table describes.

    Attributes
    ----------
    family : dict
        The family, with the keys of a family file.
    experts : int
        Experts per layer.
    notes : list of str
        What could not be found, each as a sentence.
    """

    family: dict[str, Any]
    experts: int
    notes: list[str]

    @classmethod
    def of(cls, details: dict[str, Any], text: str) -> Inference:
        """From what the command says."""
        return cls(details, text, details["family"], details["experts"], details["notes"])
