"""Batches that came ready-made, cut into their samples again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from evalmode.errors import BatchError
from evalmode.evaluation.split import TARGET_KEYS
from evalmode.observe.tree import describe, leaves, map_leaves

__all__ = ["is_one_sample", "samples_of"]


def is_one_sample(item: Any) -> bool:
    """Whether what might be a batch is one sample: its target is one number or text, and no row for each of several.

    The target is the last entry, or what a mapping calls so; where it is called otherwise, a number beside one tensor
    makes a sample.

    Raises:
        BatchError: it may be either: a number beside tensors of different shapes that are equally long.

    Example:
        >>> is_one_sample((torch.zeros(3), 1)), is_one_sample((torch.zeros(3), torch.zeros(3)))
        (True, False)
    """
    if isinstance(item, Mapping):
        named = [item[key] for key in TARGET_KEYS if key in item]
        if named:
            return _is_single(named[0])
        parts = [leaf for _, leaf in leaves(item)]
        return any(map(_is_single, parts)) and sum(map(_has_rows, parts)) == 1
    if not isinstance(item, tuple | list) or len(item) < 2 or not _is_single(item[-1]):
        return False
    found = [part for _, part in leaves(item[:-1])]
    shapes = {tuple(part.shape) for part in found if isinstance(part, torch.Tensor | np.ndarray) and part.ndim}
    if len(shapes) > 1 and len({shape[0] for shape in shapes}) == 1:
        raise BatchError(
            f"a loader without batch size gives {describe(item)}: is it one sample, or a batch and its number?",
            expected="a sample whose last entry is its target, or a batch of tensors with one row per sample",
            fix="samples: hand over the dataset itself; batches: leave the number out, or give each sample its own",
        )
    return True


def _is_single(part: object) -> bool:
    return isinstance(part, int | float | str | np.generic) or (
        isinstance(part, torch.Tensor | np.ndarray) and not part.ndim
    )


def samples_of(batches: Iterable[Any]) -> Iterator[Any]:
    """The samples of each batch, in order; what is one sample is given as it is.

    Raises:
        BatchError: the tensors of a batch differ in their first axis, so that its samples cannot be told.

    Example:
        >>> [x.tolist() for x, y in samples_of([(torch.eye(2), torch.arange(2))])]
        [[1.0, 0.0], [0.0, 1.0]]
    """
    for number, batch in enumerate(batches):
        if is_one_sample(batch):
            yield batch
            continue
        lengths = {len(leaf) for _, leaf in leaves(batch) if isinstance(leaf, torch.Tensor | np.ndarray) and leaf.ndim}
        if len(lengths) != 1:
            raise BatchError(
                f"batch {number} of the data is {describe(batch)}: its samples cannot be told",
                expected="tensors with one row per sample, as many rows in each",
                fix="hand over the dataset of samples, or exact=False to run the batches as they come",
            )
        for row in range(lengths.pop()):
            yield map_leaves(lambda _, leaf, row=row: leaf[row] if _has_rows(leaf) else leaf, batch)  # type: ignore[misc]


def _has_rows(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor | np.ndarray) and leaf.ndim > 0
