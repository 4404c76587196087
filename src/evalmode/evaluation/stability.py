"""Whether a sample's bits stay when its group runs again: as it was, or beside other companions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from evalmode.evaluation.outputs import main_output
from evalmode.observe.batching import BatchAxis, select_samples
from evalmode.observe.tree import same_bits, tensor_leaves

__all__ = ["beside_others", "has_companions", "keeps_bits", "rows_alike"]


def has_companions(inputs: Any, axis: BatchAxis, size: int) -> bool:
    """Whether the first `size` rows are more than one sample again and again."""
    rows, first = (select_samples(inputs, axis, places) for places in (range(size), [0] * size))
    pairs = zip(tensor_leaves(rows), tensor_leaves(first), strict=True)
    return not all(same_bits(one, other) for (_, one), (_, other) in pairs)


def beside_others(size: int) -> list[int]:
    """The rows of a group at other positions, a quarter of them replaced by its second sample: no mere shuffle.

    A shuffle would leave the mean of the group as it was; so would an order that takes each of two samples equally
    often, with which a group may be filled up.

    Example:
        >>> beside_others(6), beside_others(2)
        ([5, 4, 3, 2, 1, 1], [1, 1])
    """
    replaced = max(1, size // 4)
    return [*range(size - 1, replaced - 1, -1), *[1] * replaced]


def keeps_bits(predict: Callable[[Any], Any], inputs: Any, axis: BatchAxis, found: Any, rows: Sequence[int]) -> bool:
    """Whether the samples at `rows`, run as one execution, give what `found` has for them.

    True as well where no tensor answers with a row for each sample.
    """
    scores, _ = main_output(found)
    if scores is None or not scores.ndim or len(scores) != axis.size:
        return True
    again, _ = main_output(predict(select_samples(inputs, axis, rows)))
    if again is None or not again.ndim or len(again) != len(rows):
        return True
    return same_bits(again, scores[torch.tensor([*rows], device=scores.device)])


def rows_alike(found: Any, axis: BatchAxis) -> bool:
    """Whether a group of one sample again and again has one answer at all positions; True where no tensor answers."""
    scores, _ = main_output(found)
    if scores is None or not scores.ndim or len(scores) != axis.size:
        return True
    return same_bits(scores, scores[:1].expand_as(scores))
