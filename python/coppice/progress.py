"""Progress of work in C++: a bar of tqdm, or a function of the caller."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


_SILENT_SECONDS = 1.0


class ProgressState(NamedTuple):
    """How far a piece of work has come.

    Attributes
    ----------
    label : str
        What the work is.
    done, total : int
        Both in `unit`; total 0: unknown.
    unit : str
        "bytes", "items", "steps" or "tokens".
    last : bool
        The work has ended.
    """

    label: str
    done: int
    total: int
    unit: str
    last: bool


class _Bar:
    """A bar of tqdm for the work under way; work of less than a second shows none."""

    def __init__(self, tqdm: Any) -> None:
        self._tqdm = tqdm
        self._bar: Any = None
        self._label = ""

    def __call__(self, label: str, done: int, total: int, unit: str, last: bool) -> None:
        if label != self._label:
            self.close()
        if self._bar is None:
            self._label = label
            form = {"unit": "B", "unit_divisor": 1024} if unit == "bytes" else {"unit": f" {unit}"}
            self._bar = self._tqdm(total=total or None, desc=label, unit_scale=True, delay=_SILENT_SECONDS, **form)
        self._bar.update(done - self._bar.n)
        if last:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Told:
    """Passes progress to a function of the caller."""

    def __init__(self, tell: Callable[[ProgressState], object]) -> None:
        self._tell = tell

    def __call__(self, *state: Any) -> None:
        self._tell(ProgressState(*state))

    def close(self) -> None:
        """Nothing is open."""


def receiver(progress: bool | Callable[[ProgressState], object] | None) -> _Bar | _Told | None:
    """What C++ calls with its progress; None: nothing."""
    if callable(progress):
        return _Told(progress)
    if not progress:
        return None
    try:
        tqdm = importlib.import_module("tqdm.auto").tqdm
    except ImportError:
        return None
    return _Bar(tqdm)
