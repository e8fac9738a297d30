"""Where models of other libraries keep their experts: one file for each library.

A new layout is one file with a class like `layout.Layout`, and its name in `LAYOUTS`.
"""

from __future__ import annotations

from torch import nn

from coppice.errors import UnsupportedError
from coppice.modules.layout import Layout
from coppice.modules.megatron import MegatronLayout
from coppice.modules.torchtitan import TorchtitanLayout
from coppice.modules.transformers import TransformersLayout

LAYOUTS: tuple[Layout, ...] = (TransformersLayout(), TorchtitanLayout(), MegatronLayout())

__all__ = ["LAYOUTS", "Layout", "description_of", "layout_of"]


def layout_of(model: nn.Module) -> Layout:
    """The layout that knows the model.

    Raises
    ------
    UnsupportedError
        None does; the message names the modules that look like experts.
    """
    for layout in LAYOUTS:
        if layout.recognises(model):
            return layout
    for path, module in model.named_modules():
        inside = next((layout for layout in LAYOUTS if path and layout.recognises(module)), None)
        if inside is not None:
            raise UnsupportedError(
                f"{type(model).__name__}: no layout knows this module, but the one inside it, '{path}', is a model of "
                f"{inside.name}: {type(module).__name__} (give that one)"
            )
    suspects = [
        f"{path or 'the model itself'} ({type(module).__module__}.{type(module).__qualname__})"
        for path, module in model.named_modules()
        if "expert" in type(module).__name__.lower() or "moe" in type(module).__name__.lower()
    ]
    found = "modules that look like experts: " + ", ".join(suspects[:5]) if suspects else "no module looks like experts"
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise UnsupportedError(
        f"{type(model).__name__}: no layout knows this model; {found}; known are models of {known} "
        "(add a layout, as docs/in_your_run.md says, or expand the checkpoint on disk)"
    )


def description_of(model: nn.Module) -> str:
    """What `_core` needs to know of the model, as JSON."""
    from coppice.wrappers import without_ddp

    inner = without_ddp(model)
    return layout_of(inner).description(inner)
