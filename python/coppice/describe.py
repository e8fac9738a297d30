"""What the C++ functions need to know of a model, as JSON text."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from coppice.errors import FormatError, NotFoundError, UsageError, a_type


def describe(model: Any) -> str:
    """The text for a module, a configuration, the dict of one, or a path to one.

    Raises
    ------
    UsageError
        It is none of these.
    NotFoundError, FormatError, UnsupportedError
        There is no such file; it is no JSON; no layout knows the modules.
    """
    if isinstance(model, str | os.PathLike):
        if not os.fspath(model):
            raise UsageError("model: an empty path; wanted a directory with a config.json, or its path")
        return _of_config(_read_config(pathlib.Path(model)))
    if isinstance(model, Mapping):
        return _of_config(model)
    if not isinstance(model, type) and is_transformers_config(model):
        return _of_config(config_json(model))
    if isinstance(model, type) or not hasattr(model, "named_modules"):
        raise UsageError(
            f"model: {a_type(model)}; wanted a module, a transformers configuration, "
            "the dict of a config.json, or a path to one"
        )
    from coppice.modules import description_of  # needs torch

    return description_of(model)


def is_transformers_config(value: Any) -> bool:
    """Whether it is a configuration of transformers."""
    return hasattr(value, "model_type") and hasattr(value, "to_json_string")


def config_json(config: Any) -> dict[str, Any]:
    """A transformers configuration as its config.json would be."""
    fields: dict[str, Any] = json.loads(config.to_json_string())
    return fields


def _of_config(config: Mapping[str, Any]) -> str:
    return json.dumps({"config": dict(config)})


def _read_config(path: pathlib.Path) -> Mapping[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        fields: Mapping[str, Any] = json.loads(file.read_text())
        return fields
    except OSError as error:
        raise NotFoundError(f"{file}: {error.strerror} (give a directory with a config.json, or its path)") from error
    except ValueError as error:
        raise FormatError(f"{file}: is no JSON: {error} (give a config.json)") from error
