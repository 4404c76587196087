"""Weights without numbers: of a lazy module that has not run yet, or on the meta device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn.parameter import is_lazy

from evalmode.errors import UsageError

__all__ = ["require_weights"]


def require_weights(named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Nothing where every one of these parameters and buffers has numbers to compute with.

    Raises:
        UsageError: one has none; the message names it.

    Example:
        >>> require_weights(torch.nn.Linear(2, 3).named_parameters())
        >>> require_weights(torch.nn.LazyLinear(3).named_parameters())
        Traceback (most recent call last):
            ...
        evalmode.errors.UsageError: `weight` is not initialised yet: a lazy module takes its shape from the first batch
          expected: a model that has run
          fix: run model(batch) once first, and load its weights
    """
    for name, tensor in named:
        if is_lazy(tensor):
            raise UsageError(
                f"`{name}` is not initialised yet: a lazy module takes its shape from the first batch",
                expected="a model that has run",  # a first pass would make it so, and that cannot be undone
                fix="run model(batch) once first, and load its weights",
            )
        if tensor.is_meta:
            raise UsageError(
                f"`{name}` is on the meta device: it has a shape and no numbers",
                expected="a model with weights",
                fix="model.to_empty(device=...), then load_state_dict(...)",
            )
