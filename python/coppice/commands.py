"""The commands of the command line as functions, with its options as keywords.

The options, their help and their defaults come from the tables of the C++ code. So do
the parameters in the docstrings here, and the stub ``commands.pyi``.
"""

from __future__ import annotations

import functools
import inspect as _inspect
import json
import logging
import numbers
import os
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from coppice import _core
from coppice.errors import CheckFailedError, UsageError
from coppice.progress import receiver
from coppice.results import Conversion, Expansion, Inference, Inspection, Result, Verification

__all__ = ["convert", "cost", "expand", "inspect", "verify"]

_log = logging.getLogger("coppice")

_PROGRESS = """progress : bool or callable, default True
    True: a bar of tqdm where it is installed. A function gets a `ProgressState` now and
    then, in this thread. False: nothing."""
_CHECK = """check : bool, default True
    Raise `CheckFailedError` if the check does not hold. False: only say so in the result."""
_RAISES = """Raises
------
coppice.Error
    One of its classes in `coppice.errors`. The message says what was found, what was
    wanted and what to do, with options spelled as on the command line.
KeyboardInterrupt
    After Ctrl-C, when the work has stopped cleanly."""
_TYPES = {"text": "str or int", "path": "path", "integer": "int", "number": "float", "flag": "bool"}


def _on_log(is_warning: bool, message: str) -> None:
    _log.log(logging.WARNING if is_warning else logging.INFO, "%s", message)


def _plain(value: Any) -> Any:
    """The value of an option as C++ takes it: bool, int, float, str, or a list of them."""
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return [_plain(item) for item in value] if isinstance(value, Iterable) else value


def _call(command: str, options: dict[str, Any], progress: Any) -> tuple[bool, dict[str, Any], str]:
    """Calls a command of C++: whether it is ok, its JSON and its text."""
    for option in _core.options(command):
        if option["positional"] and options.get(_key(option), "") is None:
            raise UsageError(f"{_key(option)}: None; wanted a {_TYPES[option['type']]}")
    given = {name: _plain(value) for name, value in options.items() if value is not None}
    bar = receiver(progress)
    try:
        ok, details, text = _core.call(command, given, bar, _on_log)
    finally:
        if bar is not None:
            bar.close()
    return ok, json.loads(details), text


def _key(option: dict[str, Any]) -> str:
    return option["name"].lower().replace("-", "_")


def _default(option: dict[str, Any]) -> Any:
    value = json.loads(option["default"])
    return None if value == [] else value


def _parameter_text(option: dict[str, Any]) -> str:
    """An option as a parameter of a docstring in numpy form."""
    kind = _TYPES[option["type"]]
    if option["is_list"]:
        kind = f"{kind} or list of {kind}"
    default = _default(option)
    ending = "" if option["positional"] else ", optional" if default is None else f", default {default!r}"
    help = option["help"]
    text = (help[:1].upper() if help.split()[0].isalpha() else help[:1]) + help[1:] + "."
    lines = textwrap.wrap(text, 84, break_on_hyphens=False)
    return "\n    ".join([f"{_key(option)} : {kind}{ending}", *lines])


def _command(name: str) -> Callable[[Any], Any]:
    """Gives a function the options of a command: in its signature and its docstring."""

    def complete(function: Any) -> Any:
        own = list(_inspect.signature(function).parameters.values())[:-1]
        options = _core.options(name)
        keywords = [
            _inspect.Parameter(_key(option), _inspect.Parameter.KEYWORD_ONLY, default=_default(option))
            for option in [*options, {"name": "config", "type": "path", "default": "null", "positional": False}]
            if not option["positional"]
        ]

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        called.__signature__ = _inspect.Signature([*own, *keywords])  # type: ignore[attr-defined]
        described = [_parameter_text(option) for option in options]
        operands = sum(option["positional"] for option in options)
        described[operands:operands] = (
            [_CHECK, _PROGRESS] if "check" in called.__signature__.parameters else [_PROGRESS]
        )
        described.append("config : path, optional\n    TOML file of options; keywords override it.")
        parameters = "Parameters\n----------\n" + "\n".join(described)
        called.__doc__ = (
            _inspect.cleandoc(function.__doc__).replace("{parameters}", parameters).replace("{raises}", _RAISES)
        )
        return called

    return complete


@_command("expand")
def expand(model, out, *, progress=True, **options):
    """Write `model` with more experts in every MoE layer to the directory `out`.

    {parameters}

    Returns
    -------
    Expansion
        Sizes before and after, and whether the new model computes the same function.

    {raises}

    Notes
    -----
    Memory does not grow with the model: 4 MiB for each thread, or one matrix of an expert
    for each thread with methods that need it whole. The bytes depend on nothing but
    the model, the options and the seed. `out` appears when it is complete: after an error
    it does not exist, and with ``resume=True`` the work that is done is kept beside it.
    """
    _, details, text = _call("expand", {"model": model, "out": out, **options}, progress)
    return Expansion.of(details, text)


@_command("convert")
def convert(model, out, *, progress=True, **options):
    """Write a dense model, or several, as a Mixture of Experts to the directory `out`.

    {parameters}

    Returns
    -------
    Conversion
        Sizes before and after, what the new family cannot express, and whether the new
        model computes the same function.

    {raises}

    Notes
    -----
    Memory and `out` are as in `expand`.
    """
    _, details, text = _call("convert", {"model": model, "out": out, **options}, progress)
    return Conversion.of(details, text)


@_command("verify")
def verify(before, after, *, check=True, progress=True, **options):
    """Check every tensor of an expanded or converted model against the model before it.

    {parameters}

    Returns
    -------
    Verification
        Whether they fit each other, and every problem.

    {raises}

    Notes
    -----
    Memory: 4 MiB for each thread, or one matrix for each thread. `function`, and what
    depends on it, needs the full program; this package has the core.
    """
    ok, details, text = _call("verify", {"before": before, "after": after, **options}, progress)
    result = Verification.of(details, text)
    if check and not ok:
        verdict = text.rstrip("\n").splitlines()[-1]
        raise CheckFailedError(f"{os.fspath(after)}: {verdict}; the first: {result.problems[0]}", result)
    return result


@_command("inspect")
def inspect(model, *, progress=True, **options):
    """Describe a model: family, experts, routing, parameters, bytes, lineage.

    {parameters}

    Returns
    -------
    Inspection or Inference
        `Inference` with ``infer=True``.

    {raises}

    Notes
    -----
    Reads the headers of the files alone; with ``experts=True`` all experts, one matrix for
    each thread.
    """
    _, details, text = _call("inspect", {"model": model, **options}, progress)
    return Inference.of(details, text) if options.get("infer") else Inspection.of(details, text)


@_command("cost")
def cost(model, *, progress=True, **options):
    """Estimate what an expansion of `model` would cost and gain: the command ``plan``.

    Its name here is `cost`, because `plan` makes the growth plan of a model.

    {parameters}

    Returns
    -------
    Result
        `details` has the keys of ``coppice plan --json``.

    {raises}

    Notes
    -----
    Reads headers alone. `measure`, and what depends on it, needs the full program; this
    package has the core.
    """
    _, details, text = _call("cost", {"model": model, **options}, progress)
    return Result(details, text)
