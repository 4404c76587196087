"""Batches that came ready-made, cut into their samples again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from evalmode.errors import BatchError
from evalmode.observe.tree import describe, leaves, map_leaves

__all__ = ["samples_of"]


def samples_of(batches: Iterable[Any]) -> Iterator[Any]:
    """The samples of each batch, in order.

    Raises:
        BatchError: the tensors of a batch differ in their first axis, so that its samples cannot be told.

    Example:
        >>> [x.tolist() for x, y in samples_of([(torch.eye(2), torch.arange(2))])]
        [[1.0, 0.0], [0.0, 1.0]]
    """
    for number, batch in enumerate(batches):
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
