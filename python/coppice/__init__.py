"""coppice expands Mixture-of-Experts language models.

What works on files, and `plan`, needs no torch. `expand_`, `watch` and the rest of what
works on models in memory imports it when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

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
from coppice.growth_plan import GrowthPlan, plan

if TYPE_CHECKING:
    from coppice.growth import Growth, expand_
    from coppice.watching import Scores, watch

# Names that need torch, and the modules they are in.
_WITH_TORCH = {
    "Growth": "coppice.growth",
    "Scores": "coppice.watching",
    "expand_": "coppice.growth",
    "watch": "coppice.watching",
}

__all__ = [
    "CheckFailedError",
    "Error",
    "FormatError",
    "Growth",
    "GrowthPlan",
    "InternalError",
    "IoError",
    "NonFiniteError",
    "NotFoundError",
    "PeerError",
    "Scores",
    "ShapeError",
    "StoppedError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "expand_",
    "plan",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module 'coppice' has no attribute '{name}'")
