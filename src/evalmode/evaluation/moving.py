"""By how much a sample's answer moved beside other samples, and whether that is rounding: in fp64 it then is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from evalmode.evaluation.rows import answers_of
from evalmode.observe.batching import BatchAxis, difference, select_samples
from evalmode.observe.tree import map_tensors
from evalmode.observe.wide import wide, widened

__all__ = ["Change", "Moved", "moved_by", "said_of"]

_SHARE = 1e-6  # of the largest value: fp64 rounds ten orders of magnitude finer than that


class Change(NamedTuple):
    """A probe that gave other bits: its inputs, the rows they are of, the places compared, the bits before and now.

    `answer` is which of the tensors with a row for each sample it was.
    """

    given: Any
    rows: Sequence[int]
    kept: Sequence[int]
    before: Tensor
    now: Tensor
    answer: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """The largest difference over the largest value; `depends` is False where it is rounding, None if that is unknown.

    Units: `share` is a share of 1.
    """

    share: float
    depends: bool | None


def moved_by(
    function: Callable[[Any], Any],
    module: nn.Module | None,
    inputs: Any,
    axis: BatchAxis,
    size: int,
    change: Change | None,
    found: Any,
) -> Moved:
    """How far a probe moved answers that `found` holds; without one, the rows of one sample again and again differ."""
    if change is None:
        scores = next(iter(answers_of(found, axis.size)), torch.zeros(1))
        given = select_samples(inputs, axis, range(size))
        change = Change(given, [0] * size, range(size), scores[:1].expand_as(scores), scores)
    given, rows, kept, answer = change.given, change.rows, change.kept, change.answer
    try:
        now = _evaluated_wide(function, module, given, size, answer)
        before = {
            start: _evaluated_wide(
                function, module, select_samples(inputs, axis, range(start * size, (start + 1) * size)), size, answer
            )
            for start in sorted({rows[place] // size for place in kept})
        }
        wanted = torch.stack([before[rows[place] // size][rows[place] % size] for place in kept])
        depends = _share(wanted, now[[*kept]]) > _SHARE
    except Exception:  # noqa: BLE001 - whatever a model raises in fp64: then it is not known
        depends = None
    return Moved(_share(change.before, change.now), depends)


def said_of(moved: Moved) -> str:
    """What moved, in words.

    Example:
        >>> said_of(Moved(2e-7, False))[-44:]
        '(by 2e-07 of the largest value, not in fp64)'
    """
    by = f"{moved.share:.1g} of the largest value"
    if moved.depends is None:
        return (
            f"the model's answer to a sample changes with the samples beside it (by {by}; evalmode.check(model, batch) "
            "tells rounding from dependence)"
        )
    if moved.depends:
        return (
            f"the model's answer to a sample depends on the samples beside it (it moved by {by}, and moves in fp64 "
            "too; evalmode.check(model, batch) names the line)"
        )
    return f"the model rounds otherwise at another place or beside other samples (by {by}, not in fp64)"


def _share(first: Tensor, second: Tensor) -> float:
    gap, scale = difference(first, second)
    return gap / scale if gap and scale else gap


def _evaluated_wide(
    function: Callable[[Any], Any], module: nn.Module | None, inputs: Any, size: int, answer: int
) -> Tensor:
    copies = widened(map_tensors(torch.clone, inputs))
    try:
        with wide():
            found = answers_of(function(copies), size)[answer]
    except Exception:
        if module is None:
            raise
        with wide(module):  # a model that compares dtypes in Python
            found = answers_of(function(widened(map_tensors(torch.clone, inputs))), size)[answer]
    if found.is_floating_point() and found.dtype != torch.float64:
        raise TypeError("no answer in fp64")
    return found
