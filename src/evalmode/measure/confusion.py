"""Confusion: how often each class was answered with each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.certificate import ConfusionRecord
from evalmode.errors import UsageError

__all__ = ["confusion"]


def confusion(
    prediction: NDArray[Any], target: NDArray[Any], labels: Sequence[object] | None = None
) -> ConfusionRecord:
    """The confusion matrix: row i holds the samples of class i, column j those answered with class j.

    With `labels`, class i bears the i-th; without, the classes from 0 to the highest that occurs bear their numbers.

    Shapes: prediction and target `(N,)` whole numbers.

    Raises:
        UsageError: lengths differ, there are no samples, or a class is no whole number or has no label.

    Example:
        >>> confusion(np.array([0, 1, 1]), np.array([0, 0, 1])).counts
        ((1, 1), (0, 1))
    """
    if prediction.ndim != 1 or prediction.shape != target.shape or not len(target):
        raise UsageError(
            f"confusion of predictions of shape {prediction.shape} with a target of shape {target.shape}",
            expected="one class index per sample in both, at least one sample",
        )
    highest = int(max(prediction.max(), target.max()))
    known = highest + 1 if labels is None else len(labels)
    for what, values in (("prediction", prediction), ("target", target)):
        if values.dtype.kind in "biu" and values.min() >= 0 and values.max() < known:
            continue
        bad = (values < 0) | (values >= known) | (values != np.trunc(values))
        if bool(bad.any()):
            raise UsageError(
                f"confusion: the {what} of {int(bad.sum())} samples is no class, the first is {values[bad][0]}",
                expected=f"whole numbers from 0 to {known - 1}",
                fix=None if labels is None else "give a label for every class",
            )
    cells = target.astype(np.int64)
    cells *= known
    cells += prediction.astype(np.int64, copy=False)
    counts = np.bincount(cells, minlength=known * known).reshape(known, known)
    return ConfusionRecord(
        labels=tuple(str(label) for label in (range(known) if labels is None else labels)),
        counts=tuple(tuple(row) for row in counts.tolist()),
    )
