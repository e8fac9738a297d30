"""What coppice raises: one class for each kind of error, under one base.

A message says what was found, what was wanted and what to do. Each class is also
the class of Python that fits it best, so that code which knows nothing of coppice
catches it: ``except OSError`` catches a full disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coppice.results import Verification


class Error(Exception):
    """Base of everything that coppice raises on purpose."""


class UsageError(Error, ValueError):
    """An option is wrong, or it has no effect here."""


class NotFoundError(Error, FileNotFoundError):
    """A file, tensor or name that was asked for does not exist."""


class FormatError(Error, ValueError):
    """A file does not follow its format."""


class ShapeError(Error, ValueError):
    """A tensor does not have the shape or dtype that its role requires."""


class NonFiniteError(Error, ArithmeticError):
    """NaN or infinity stands where a number is needed."""


class UnsupportedError(Error, NotImplementedError):
    """The input is valid, and this package cannot handle it."""


class IoError(Error, OSError):
    """The operating system refused: a full disk, a permission, a missing tool."""


class PeerError(Error, RuntimeError):
    """Another rank failed; its own log has the reason."""


class CheckFailedError(Error, AssertionError):
    """A check that was asked for did not hold.

    Attributes
    ----------
    result : Verification or None
        All that was found, from `coppice.verify`.
    """

    def __init__(self, message: str, result: Verification | None = None) -> None:
        super().__init__(message)
        self.result = result


class StoppedError(Error, RuntimeError):
    """The work was stopped; no output file is incomplete."""


class InternalError(Error, RuntimeError):
    """A bug in coppice; please report it."""


def a_type(value: object) -> str:
    """The type of a value with its article, for a message: ``an int``, ``a Linear``."""
    if value is None:
        return "None"
    name = f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def check_count(name: str, value: object, least: int, wanted: str) -> None:
    """Check that an argument is a whole number from `least` on.

    Raises
    ------
    UsageError
        It is not; the message says that `wanted` was.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name}: {value!r}; wanted {wanted}")
