"""Experts that are modules of their own, in a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from coppice.modules.site import Arrange, Packed, Separate


def arrange_experts(experts: nn.Module, label: str, sets: Sequence[Packed | Separate]) -> Arrange:
    """Arranges the modules of `experts`, named by `label` and a number; `sets` are their parameters."""
    separate = [each for each in sets if isinstance(each, Separate)]

    def arrange(parents: Sequence[tuple[int, int]], made: list[list[nn.Parameter]]) -> Callable[[], None]:
        before: dict[str, Any] = dict(experts._modules)
        originals = [before[f"{label}{expert}"] for expert in range(len(separate[0].places))]
        numbered = {f"{label}{expert}" for expert in range(len(originals))}
        after = {name: module for name, module in before.items() if name not in numbered}
        for child, (parent, copy) in enumerate(parents):
            module = originals[parent]
            if copy > 0:
                old = [each.places[parent].tensor for each in separate]
                module = cloned(module, dict(zip(map(id, old), made[child], strict=True)))
            after[f"{label}{child}"] = module

        def back() -> None:
            experts._modules.clear()
            experts._modules.update(before)

        try:
            experts._modules.clear()
            experts._modules.update(after)
        except BaseException:
            back()
            raise
        return back

    return arrange


def cloned(module: nn.Module, parameters: dict[int, nn.Parameter]) -> nn.Module:
    """A module like this one, with other parameters and its own copies of buffers.

    Everything else is shared: configuration, process groups, hooks.

    Parameters
    ----------
    parameters : dict
        The parameter for each of the module's, by ``id``.
    """
    out = type(module).__new__(type(module))
    out.__dict__.update(module.__dict__)
    for name, value in module.__dict__.items():
        if name.endswith("_hooks") or name in ("_parameters", "_buffers", "_modules"):
            out.__dict__[name] = value.copy() if hasattr(value, "copy") else value
    out._parameters = {name: None if p is None else parameters[id(p)] for name, p in module._parameters.items()}
    out._buffers = {name: None if b is None else _copied(b) for name, b in module._buffers.items()}
    out._modules = {name: None if m is None else cloned(m, parameters) for name, m in module._modules.items()}
    return out


def _copied(buffer: Tensor) -> Tensor:
    return buffer.detach().clone()


def arrange_numbered(sets: Sequence[Packed | Separate]) -> Arrange:
    """Arranges parameters ``weight0``, ``weight1`` ... of one module for each set."""
    separate = [each for each in sets if isinstance(each, Separate)]

    def arrange(parents: Sequence[tuple[int, int]], made: list[list[nn.Parameter]]) -> Callable[[], None]:
        before = [(each.places[0].module, dict(each.places[0].module._parameters)) for each in separate]

        def back() -> None:
            for module, parameters in before:
                module._parameters.clear()
                module._parameters.update(parameters)

        try:
            for number, each in enumerate(separate):
                module, label = each.places[0].module, each.places[0].name.rstrip("0123456789")
                originals: list[Any] = [place.tensor for place in each.places]
                names = {place.name for place in each.places}
                after: dict[str, nn.Parameter | None] = {}
                for child, (parent, copy) in enumerate(parents):
                    after[f"{label}{child}"] = made[child][number] if copy > 0 else originals[parent]
                after |= {name: p for name, p in module._parameters.items() if name not in names}
                module._parameters.clear()
                module._parameters.update(after)
        except BaseException:
            back()
            raise
        return back

    return arrange
