"""The mark of a frozen module: an attribute named `train` that answers every `train(mode)` by changing nothing.

It lives in the instance's own `__dict__`, so the class stays what it was, and it is copied, pickled and wrapped along
with the module.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

__all__ = ["FrozenMode", "Layer", "frozen_mode", "frozen_parameters", "marks"]


@dataclass(frozen=True, slots=True)
class Layer:
    """What one `freeze` found in one module; `root` says that it was the module given.

    `requires_grad` and `grads` are those before the first of the freezes that are in force on a parameter.
    """

    root: bool
    training: bool
    requires_grad: dict[str, bool]
    grads: dict[str, torch.Tensor]


@dataclass(slots=True, eq=False, weakref_slot=True)
class FrozenMode:
    """Stands in for the `train` method of a frozen module. `layers` are the freezes in force, the latest last."""

    module: nn.Module
    layers: list[Layer] = field(default_factory=list)
    replaced: Any = None
    """An instance attribute `train` that was there before, if any."""

    def __post_init__(self) -> None:
        _note(self)

    def __call__(self, mode: bool = True) -> nn.Module:
        """Leave the module as it is, tell its children (one may have been unfrozen), and return it as train() does."""
        for child in self.module.children():
            child.train(mode)
        return self.module

    def __getstate__(self) -> tuple[object, ...]:
        # A copy of a parameter has no `.grad`, so that of a frozen one has none to give back either.
        return self.module, [replace(layer, grads={}) for layer in self.layers], self.replaced

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.module, self.layers, self.replaced = state
        _note(self)


marks: weakref.WeakSet[FrozenMode] = weakref.WeakSet()
"""Every mark in this process, copied and unpickled ones too."""

_following_conversions = False


def _note(mark: FrozenMode) -> None:
    """Keep track of `mark`, and from the first one on of conversions.

    `SyncBatchNorm.convert_sync_batchnorm` makes a new module and hands it the old one's tensors. torch tells of every
    tensor that is handed to a module, so a SyncBatchNorm that is given a frozen module's takes its mark over.
    """
    global _following_conversions  # noqa: PLW0603 - torch's hooks are process-wide as well
    marks.add(mark)
    if not _following_conversions:
        register_module_parameter_registration_hook(_take_mark_over)
        register_module_buffer_registration_hook(_take_mark_over)
        _following_conversions = True


def _take_mark_over(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
    if not isinstance(module, nn.SyncBatchNorm) or tensor is None or frozen_mode(module) is not None:
        return
    group = "_parameters" if isinstance(tensor, nn.Parameter) else "_buffers"
    for mark in list(marks):
        if mark.module is not module and _own(mark.module, group).get(name) is tensor:
            module.__dict__["train"] = FrozenMode(module, layers=list(mark.layers))
            marks.discard(mark)
            return


def _own(module: nn.Module, group: str) -> dict[str, Any]:
    return dict((module.__dict__.get(group) or {}).items())  # a scripted module's group is no mapping


def frozen_parameters() -> dict[int, tuple[bool, torch.Tensor | None]]:
    """Parameters that freezes in force hold, by `id`: `requires_grad` and `.grad` before the first of the freezes."""
    held: dict[int, tuple[bool, torch.Tensor | None]] = {}
    for mark in list(marks):
        parameters = _own(mark.module, "_parameters")
        for layer in mark.layers:
            for name, needed in layer.requires_grad.items():
                if parameters.get(name) is not None:
                    held.setdefault(id(parameters[name]), (needed, layer.grads.get(name)))
    return held


def frozen_mode(module: nn.Module) -> FrozenMode | None:
    """The mark on `module`, or None if it is not frozen. A shallow copy shares the original's: it is given its own."""
    mark = module.__dict__.get("train")
    if not isinstance(mark, FrozenMode):
        return None
    if mark.module is not module:
        mark = module.__dict__["train"] = FrozenMode(module, layers=list(mark.layers), replaced=mark.replaced)
    return mark
