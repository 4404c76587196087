"""The first operator at which two passes on one batch give other bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from evalmode.observe.attribution import ModuleStack, place_of
from evalmode.observe.following import Operators
from evalmode.observe.summary import Summary, summary_of
from evalmode.observe.trace import Parting

__all__ = ["first_difference"]


def first_difference(runs: tuple[Callable[[], Any], Callable[[], Any]], model: nn.Module | None) -> Parting | None:
    """The first operator whose outputs differ, or that is another one, in the second run."""
    found: list[Parting] = []
    summaries: list[tuple[str, list[Summary]]] = []

    def first(func: Any, args: Any, named: Any, tensors: list[torch.Tensor]) -> None:
        summaries.append((str(func), [summary_of(tensor) for tensor in tensors]))

    with Operators(first):
        runs[0]()
    remaining = iter(summaries)
    with ModuleStack(model) as stack:

        def second(func: Any, args: Any, named: Any, tensors: list[torch.Tensor]) -> None:
            if not found and next(remaining, None) != (str(func), [summary_of(tensor) for tensor in tensors]):
                found.append(Parting(str(func), place_of(stack.top)))

        with Operators(second):
            runs[1]()
    return found[0] if found else None
