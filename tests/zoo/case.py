"""A model with its batch, and how the zoo runs one: by its own means, not those of `evalmode`."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["Case", "first_tensor", "map_tensors", "run", "samples_of", "seeded", "take", "tensors_of"]


@dataclass(frozen=True)
class Case:
    """A model in evaluation mode, a batch for it, and the options that `check` needs for it."""

    name: str
    model: nn.Module
    batch: Any
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return samples_of(self.batch)


def seeded(seed: int) -> None:
    """Seed torch's, Python's and numpy's global streams."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def run(model: nn.Module, batch: Any) -> Any:
    """The outputs of `model` on a copy of `batch`, without gradients; the caller's grad mode always comes back."""
    grad_mode = torch.is_grad_enabled()
    batch = map_tensors(batch, torch.clone)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.set_grad_enabled(False)  # set by hand: some defects leave another mode behind
            if isinstance(batch, Mapping):
                return model(**batch)
            return model(*batch) if isinstance(batch, tuple) else model(batch)
    finally:
        torch.set_grad_enabled(grad_mode)


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with every tensor changed; containers are rebuilt, what is neither stays."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, change) for item in value)
    return value


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Every tensor of an output, in order; caches and other objects are skipped."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


def samples_of(batch: Any) -> int:
    """How many samples a batch holds: the items of a list, or the length of its first tensor."""
    return len(batch) if isinstance(batch, list) else len(tensors_of(batch)[0])


def take(value: Any, samples: list[int], total: int) -> Any:
    """Those samples of a batch or an output: rows of tensors that are `total` long, items of lists that are."""
    if isinstance(value, list) and len(value) == total and not _is_stack(value, total):
        return [value[sample] for sample in samples]
    if isinstance(value, torch.Tensor):
        return value[samples] if value.dim() and len(value) == total else value
    if isinstance(value, Mapping):
        return {key: take(item, samples, total) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(take(item, samples, total) for item in value)
    return value


def _is_stack(value: list[Any], total: int) -> bool:
    """A list of as many tensors as there are samples may hold layers rather than samples."""
    return all(isinstance(item, torch.Tensor) and item.dim() > 1 and len(item) == total for item in value)


def first_tensor(outputs: Any) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]] | None:
    """The first floating tensor of what a module returned, and the outputs with another one in its place."""
    if isinstance(outputs, torch.Tensor):
        return (outputs, lambda tensor: tensor) if outputs.is_floating_point() else None
    if isinstance(outputs, Mapping):
        items: list[tuple[Any, Any]] = list(outputs.items())
    elif isinstance(outputs, list | tuple):
        items = list(enumerate(outputs))
    else:
        return None
    for key, value in items:
        found = first_tensor(value)
        if found is not None:
            return found[0], _replacing(outputs, key, found[1])
    return None


def _replacing(outputs: Any, key: Any, inner: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    def replaced(tensor: torch.Tensor) -> Any:
        if isinstance(outputs, tuple):
            parts = [inner(tensor) if place == key else value for place, value in enumerate(outputs)]
            return type(outputs)(*parts) if hasattr(outputs, "_fields") else tuple(parts)
        changed = copy.copy(outputs)
        changed[key] = inner(tensor)
        return changed

    return replaced
