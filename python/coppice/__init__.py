"""coppice expands Mixture-of-Experts language models."""

from coppice._core import __version__
from coppice.errors import (
    CheckFailedError,
    Error,
    FormatError,
    InternalError,
    IoError,
    NonFiniteError,
    NotFoundError,
    PeerError,
    ShapeError,
    StoppedError,
    UnsupportedError,
    UsageError,
)

__all__ = [
    "CheckFailedError",
    "Error",
    "FormatError",
    "InternalError",
    "IoError",
    "NonFiniteError",
    "NotFoundError",
    "PeerError",
    "ShapeError",
    "StoppedError",
    "UnsupportedError",
    "UsageError",
    "__version__",
]
