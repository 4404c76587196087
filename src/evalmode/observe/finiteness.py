"""Where values stopped being finite, found by walking back from the outputs that are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from evalmode.finding import Place
from evalmode.observe.attribution import ModuleStack, place_of
from evalmode.observe.following import Operators, changed_tensors
from evalmode.observe.layouts import dense_parts
from evalmode.observe.tree import tensor_leaves

__all__ = ["Loss", "first_non_finite"]


@dataclass(frozen=True, slots=True)
class Loss:
    """The operator with which values stopped being finite, and its place."""

    operator: str
    place: Place


@dataclass(frozen=True, slots=True)
class _Step:
    """An operator that gave NaN or infinity: its operands that held either, and whether it was told to (a fill)."""

    loss: Loss
    nan: bool
    from_nan: bool
    from_infinity: bool
    told: bool
    sources: tuple[int, ...]


def first_non_finite(run: Callable[[], Any], model: nn.Module | None) -> Loss | None:
    """The operator with which what `run` returns stopped being finite; None if it returns finite values.

    Only operators that led to a value returned count: a `log(0)` that a `where` throws away is harmless. It is the
    first that makes a NaN out of operands without one; if those held an infinity, the operator that made the infinity
    out of finite operands, unless it was told to (a mask filled with -inf). Without a NaN it is the first that made an
    infinity.

    Example:
        >>> def run():
        ...     x = torch.zeros(2)
        ...     kept = torch.where(x > 0, x.log(), x)
        ...     return kept.sqrt() / x
        >>> first_non_finite(run, None).operator
        'aten.div.Tensor'
    """
    steps: list[_Step] = []
    made_by: WeakIdKeyDictionary = WeakIdKeyDictionary()
    with ModuleStack(model) as stack:

        def seen(func: Any, args: Any, named: Any, tensors: list[torch.Tensor]) -> None:
            changed = changed_tensors(func, args, named, tensors)
            nan, infinite = (any(_has(tensor, kind) for tensor in tensors) for kind in ("nan", "inf"))
            outputs = {id(tensor) for tensor in tensors}
            leaves = pytree.tree_leaves((args, named))
            operands = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            sources = {made_by[leaf] for leaf in operands if leaf in made_by}
            for tensor in changed:
                made_by.pop(tensor, None)
            if not (nan or infinite):
                return
            before = [leaf for leaf in operands if id(leaf) not in outputs]
            step = _Step(
                Loss(str(func), place_of(stack.top)),
                nan,
                any(_has(leaf, "nan") for leaf in before) or any(steps[source].nan for source in sources),
                any(_has(leaf, "inf") for leaf in before) or any(not steps[source].nan for source in sources),
                any(isinstance(leaf, float) and leaf in (float("inf"), float("-inf")) for leaf in leaves),
                tuple(sorted(sources)),
            )
            for tensor in changed:
                made_by[tensor] = len(steps)
            steps.append(step)

        with Operators(seen):
            returned = run()
    ends = {made_by[leaf] for _, leaf in tensor_leaves(returned) if leaf in made_by}
    return _origin(steps, ends)


def _origin(steps: list[_Step], ends: set[int]) -> Loss | None:
    reached = sorted(_upstream(steps, ends))
    born = next((index for index in reached if steps[index].nan and not steps[index].from_nan), None)
    if born is not None and not steps[born].from_infinity:
        return steps[born].loss
    behind = reached if born is None else sorted(_upstream(steps, {born}) - {born})
    infinities = [steps[index] for index in behind if not steps[index].nan and not steps[index].from_infinity]
    made = [step for step in infinities if not step.told]
    if made:
        return made[0].loss
    if born is not None:
        return steps[born].loss
    return next((step.loss for step in (*infinities, *(steps[index] for index in reached))), None)


def _upstream(steps: list[_Step], ends: set[int]) -> set[int]:
    reached: set[int] = set()
    pending = list(ends)
    while pending:
        index = pending.pop()
        if index not in reached:
            reached.add(index)
            pending.extend(steps[index].sources)
    return reached


def _has(tensor: torch.Tensor, kind: str) -> bool:
    if not tensor.is_floating_point() and not tensor.is_complex():
        return False
    parts = [part if part.itemsize > 1 else part.float() for part in dense_parts(tensor)]
    return any(bool(part.isnan().any() if kind == "nan" else part.isinf().any()) for part in parts)
