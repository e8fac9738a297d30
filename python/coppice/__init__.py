"""coppice expands Mixture-of-Experts language models.

`expand`, `convert`, `verify`, `inspect` and `cost` do what the commands of the command
line do, in this process, on directories in Hugging Face format.
"""

from coppice import _core
from coppice.commands import convert, cost, expand, inspect, verify
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
from coppice.progress import ProgressState
from coppice.results import Conversion, Expansion, Inference, Inspection, Result, Verification

__version__ = _core.version()

__all__ = [
    "CheckFailedError",
    "Conversion",
    "Error",
    "Expansion",
    "FormatError",
    "Inference",
    "Inspection",
    "InternalError",
    "IoError",
    "NonFiniteError",
    "NotFoundError",
    "PeerError",
    "ProgressState",
    "Result",
    "ShapeError",
    "StoppedError",
    "UnsupportedError",
    "UsageError",
    "Verification",
    "__version__",
    "convert",
    "cost",
    "expand",
    "inspect",
    "verify",
]
