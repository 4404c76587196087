"""One kind of defect: how it is put into a module, what must be reported, and the line that is to blame."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tests.zoo.case import first_tensor
from torch import nn

__all__ = ["FAULTS", "MARK", "Fault", "fault", "register", "taken"]

MARK = "# planted"
FAULTS: dict[str, Fault] = {}
Forward = Callable[..., Any]


@dataclass(frozen=True)
class Fault:
    """`codes` are the right answers, `also` what may be reported beside one of them as its consequence.

    `effect` names the oracle that must see the defect at work. `prepare` readies the module (adds a child, a buffer, a
    flag) and gets the tensor that it returned on the clean model. `child` is what follows the module's path in the
    place that must be named. `lines` are the lines to blame; none where the module path alone is the place.
    """

    kind: str
    clause: str
    codes: frozenset[str]
    effect: str
    also: frozenset[str] = frozenset()
    forward: Forward | None = None
    prepare: Callable[[nn.Module, torch.Tensor], None] | None = None
    suits: Callable[[nn.Module, torch.Tensor], bool] | None = None
    per_sample: bool = False
    at_root: bool = False
    child: str = ""
    file: str = ""
    lines: frozenset[int] = frozenset()
    line_required: bool = False


def taken(outputs: Any) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    """The tensor of a module's outputs that a defect changes, and the outputs with another one in its place."""
    found = first_tensor(outputs)
    if found is None:
        raise TypeError(f"no floating tensor in {type(outputs).__name__}")
    return found


def marked_lines(function: Callable[..., Any]) -> frozenset[int]:
    lines, first = inspect.getsourcelines(function)
    return frozenset(first + index for index, line in enumerate(lines) if MARK in line)


def register(kind: str, clause: str, codes: str, effect: str, *, also: str = "", **details: Any) -> Fault:
    """Add a kind of defect; codes are separated by spaces."""
    if kind in FAULTS:
        raise ValueError(f"two kinds are called {kind!r}")
    FAULTS[kind] = Fault(kind, clause, frozenset(codes.split()), effect, frozenset(also.split()), **details)
    return FAULTS[kind]


def fault(
    clause: str,
    codes: str,
    effect: str,
    *,
    blames: Iterable[Callable[..., Any]] = (),
    line_required: bool = True,
    **details: Any,
) -> Callable[[Forward], Forward]:
    """Register a forward pass as a kind of defect, named after the function; its marked lines are to blame.

    `blames` names other functions whose marked lines are to blame instead.
    """

    def add(forward: Forward) -> Forward:
        functions = tuple(blames) or (forward,)
        lines = frozenset().union(*(marked_lines(function) for function in functions))
        register(
            forward.__name__.replace("_", "-"),
            clause,
            codes,
            effect,
            forward=forward,
            file=inspect.getsourcefile(functions[0]) or "",
            lines=lines,
            line_required=line_required and bool(lines),
            **details,
        )
        return forward

    return add
