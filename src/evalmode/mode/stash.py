"""Set the parameters' `.grad` aside while an evaluation with gradients runs, and give the very same tensors back.

A backward pass adds into `.grad` in place; with `.grad` set aside it makes new tensors, which are dropped at exit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

__all__ = ["GradientStash", "give_gradients_back", "stash_gradients"]


@dataclass(slots=True, eq=False)
class GradientStash:
    """One evaluation's share in the parameters whose `.grad` is set aside."""

    parameters: list[nn.Parameter] = field(default_factory=list)


@dataclass(slots=True)
class _Aside:
    grad: torch.Tensor | None
    holders: set[GradientStash]


_lock = threading.RLock()
_aside: dict[int, _Aside] = {}


def stash_gradients(stash: GradientStash, modules: Iterable[nn.Module]) -> None:
    """Set `.grad` of every parameter of `modules` aside; of evaluations that overlap, the first does it."""
    with _lock:
        for module in modules:
            for parameter in (module.__dict__.get("_parameters") or {}).values():
                if parameter is None:
                    continue
                stash.parameters.append(parameter)
                if id(parameter) in _aside:
                    _aside[id(parameter)].holders.add(stash)
                else:
                    _aside[id(parameter)] = _Aside(parameter.grad, {stash})
                    parameter.grad = None


def give_gradients_back(stash: GradientStash) -> None:
    """Put `.grad` back where `stash` was the last to hold it. Safe to call twice."""
    with _lock:
        for parameter in stash.parameters:
            aside = _aside.get(id(parameter))
            if aside is None or stash not in aside.holders:
                continue
            if len(aside.holders) == 1:
                parameter.grad = aside.grad
                del _aside[id(parameter)]
            else:
                aside.holders.discard(stash)
