"""coppice expands Mixture-of-Experts language models.

`expand`, `convert`, `verify`, `inspect` and `cost` do what the commands of the command
line do, in this process, on directories in Hugging Face format. `expand_`, `expand_into`,
`watch` and `plan` do it to a model in memory, in the middle of somebody's own training;
torch is imported when one of the first three is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from coppice import _core as _core
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
from coppice.growth_plan import GrowthPlan, plan
from coppice.progress import ProgressState
from coppice.results import Conversion, Expansion, Inference, Inspection, Result, Verification

if TYPE_CHECKING:
    from coppice.growth import expand_
    from coppice.larger import expand_into
    from coppice.preparation import Growth
    from coppice.watching import Scores, watch

__version__ = _core.version()

# Names that need torch, and the modules they are in.
_WITH_TORCH = {
    "Growth": "coppice.preparation",
    "Scores": "coppice.watching",
    "expand_": "coppice.growth",
    "expand_into": "coppice.larger",
    "watch": "coppice.watching",
}

__all__ = [
    "CheckFailedError",
    "Conversion",
    "Error",
    "Expansion",
    "FormatError",
    "Growth",
    "GrowthPlan",
    "Inference",
    "Inspection",
    "InternalError",
    "IoError",
    "NonFiniteError",
    "NotFoundError",
    "PeerError",
    "ProgressState",
    "Result",
    "Scores",
    "ShapeError",
    "StoppedError",
    "UnsupportedError",
    "UsageError",
    "Verification",
    "__version__",
    "convert",
    "cost",
    "expand",
    "expand_",
    "expand_into",
    "inspect",
    "plan",
    "verify",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        try:
            return getattr(importlib.import_module(_WITH_TORCH[name]), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ModuleNotFoundError(
                f"coppice.{name} works on torch modules, and torch is not installed here (pip install torch)",
                name="torch",
            ) from None
    raise AttributeError(f"module 'coppice' has no attribute '{name}'")
