"""What a layout has to say of a model."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from coppice.modules.site import Number, Site


class Layout(Protocol):
    """How one library's models keep experts."""

    name: str

    def recognises(self, model: nn.Module) -> bool:
        """Whether the model is of this library and has experts."""

    def sites(self, model: nn.Module) -> list[Site]:
        """The layers with experts, in rising order.

        Raises
        ------
        UnsupportedError, FormatError
            The model has something that cannot be grown.
        """

    def description(self, model: nn.Module) -> str:
        """JSON text for `_core`: the configuration, or what the modules say."""

    def numbers(self, model: nn.Module, sites: list[Site], plan: Any) -> list[Number]:
        """Numbers that change: of experts, of experts for each token ...

        `plan` is a `_core.PlanOfModel`.
        """


def modules_above(model: nn.Module, paths: list[str]) -> list[nn.Module]:
    """The modules on the ways from the model to these, each once."""
    found: dict[str, None] = {}
    for path in paths:
        parts = path.split(".") if path else []
        for end in range(len(parts) + 1):
            found[".".join(parts[:end])] = None
    return [model.get_submodule(path) for path in found]
