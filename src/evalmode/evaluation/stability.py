"""Whether a sample's bits stay when its group runs again: as it was, or beside other companions."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from evalmode.evaluation.rows import alike, answers_of
from evalmode.observe.batching import BatchAxis, lists_of, select_samples
from evalmode.observe.layouts import is_plain, replaced_rows
from evalmode.observe.tree import leaves, map_leaves, same_bits, tensor_leaves

__all__ = ["beside_others", "beyond", "has_companions", "keeps_bits", "mixed", "rows_alike", "silent"]

_BEYOND = 16.0  # times a sample's own numbers; a power of two loses no bit of them


def has_companions(inputs: Any, axis: BatchAxis, size: int) -> bool:
    """Whether the first `size` rows are more than one sample again and again."""
    rows, first = (select_samples(inputs, axis, places) for places in (range(size), [0] * size))
    pairs = zip(leaves(rows), leaves(first), strict=True)
    return not all(alike(one, other) for (_, one), (_, other) in pairs)


def beside_others(inputs: Any, axis: BatchAxis, size: int) -> list[tuple[list[int], range]]:
    """Two orders of the first `size` rows, each with the places of the samples that it keeps: one half of them, then
    the other, at other positions. The rest is one of those kept, again and again.

    Whatever sample the others depend on is gone from one of the two, and neither is a mere shuffle, which would leave
    the mean as it was. Of a group that is filled up with its samples, those that differ are halved.

    Example:
        >>> from evalmode.observe.batching import find_batch_axis
        >>> values = torch.arange(6)
        >>> beside_others(values, find_batch_axis(values), 6)
        [([1, 1, 1, 2, 1, 0], range(3, 6)), ([5, 4, 3, 4, 4, 4], range(0, 3))]
    """
    different = _different(inputs, axis, size)
    half = different // 2
    lower = [*[min(1, half - 1)] * (size - half), *range(half - 1, -1, -1)]
    upper = [*range(different - 1, half - 1, -1), *[min(half + 1, different - 1)] * (size - different + half)]
    return [(lower, range(size - half, size)), (upper, range(different - half))]


def mixed(size: int, rows: int) -> tuple[list[int], range]:
    """One half of the first execution beside the other half of the last one: each loses what it may have depended on.

    Example:
        >>> mixed(4, 12)
        ([0, 1, 10, 11], range(0, 4))
    """
    half = size // 2
    return [*range(half), *range(rows - size + half, rows)], range(size)


def beyond(inputs: Any, axis: BatchAxis, places: Sequence[int]) -> Any | None:
    """The batch with larger numbers at `places` than samples have; None where nothing floating can be made larger."""
    changed = False
    if axis.listed:
        return None

    def at(path: str, leaf: Any) -> Any:
        nonlocal changed
        content = isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and "mask" not in path.lower()
        if path not in axis.paths or not content:
            return leaf
        changed = True
        return replaced_rows(leaf, axis.axis, places, lambda values: values * _BEYOND)

    found = map_leaves(at, inputs)
    return found if changed else None


@contextlib.contextmanager
def silent(*, on: bool) -> Iterator[None]:
    """Without the warnings that numbers beyond the data may bring."""
    with warnings.catch_warnings():
        if on:
            warnings.simplefilter("ignore")
        yield


def keeps_bits(predict: Callable[[Any], Any], inputs: Any, axis: BatchAxis, found: Any, rows: Sequence[int]) -> bool:
    """Whether the samples at `rows`, run as one execution, give what `found` has for them.

    True as well where no tensor answers with a row for each sample.
    """
    before = answers_of(found, axis.size)
    if not before:
        return True
    again = answers_of(predict(select_samples(inputs, axis, rows)), len(rows))
    pairs = zip(again, before, strict=False)
    return all(same_bits(now, answer[torch.tensor([*rows], device=answer.device)]) for now, answer in pairs)


def rows_alike(found: Any, axis: BatchAxis) -> bool:
    """Whether a group of one sample again and again has one answer at all positions; True where no tensor answers."""
    return all(same_bits(answer, answer[:1].expand_as(answer)) for answer in answers_of(found, axis.size))


def _different(inputs: Any, axis: BatchAxis, size: int) -> int:
    """After how many of the first `size` rows they come again: all of them, unless a group was filled up."""
    chosen = select_samples(inputs, axis, range(size))
    rows = [leaf for _, leaf in tensor_leaves(chosen) if leaf.ndim]
    if axis.listed or not all(is_plain(leaf) and len(leaf) == size for leaf in rows):
        return size
    again = torch.ones(size, dtype=torch.bool)
    for leaf in rows:
        again &= (leaf == leaf[:1]).reshape(size, -1).all(1).cpu()
    listed = [part for part in lists_of(chosen) if len(part) == size]
    for part in listed:
        again &= torch.tensor([alike(entry, part[0]) for entry in part])
    for period in again.nonzero().flatten().tolist():  # the first sample may be there twice before all come again
        if (
            period > 1
            and torch.equal(again[period:], again[:-period])
            and all(bool((leaf[period:] == leaf[:-period]).all()) for leaf in rows)
            and all(all(map(alike, part[period:], part[:-period])) for part in listed)
        ):
            return int(period)
    return size
