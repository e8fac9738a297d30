"""What a layout has to say of a model."""

from __future__ import annotations

import abc
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


class LayoutOfModules(abc.ABC):
    """The part of a layout that is the same where each layer with experts is one module."""

    @abc.abstractmethod
    def is_moe(self, module: nn.Module) -> bool:
        """Whether the module is such a layer."""

    @abc.abstractmethod
    def site(self, path: str, moe: Any) -> Site:
        """What is known of this layer, the module at `path`."""

    def recognises(self, model: nn.Module) -> bool:
        """Whether it has such a layer."""
        return any(self.is_moe(module) for module in model.modules())

    def sites(self, model: nn.Module) -> list[Site]:
        """The layers with experts in this part of the model; numbered over all pipeline stages."""
        found = [self.site(path, module) for path, module in model.named_modules() if self.is_moe(module)]
        return sorted(found, key=lambda site: site.layer)


def modules_above(model: nn.Module, paths: list[str]) -> list[nn.Module]:
    """The modules on the ways from the model to these, each once."""
    found: dict[str, None] = {}
    for path in paths:
        parts = path.split(".") if path else []
        for end in range(len(parts) + 1):
            found[".".join(parts[:end])] = None
    return [model.get_submodule(path) for path in found]
