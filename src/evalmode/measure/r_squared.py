"""R²: the share of the target's variance that a regression explains.

What it does
------------
One minus the summed squared error over the summed squared distance of the targets from their own mean; of several
quantities per sample the mean of each one's.

Why it matters
--------------
It reads without a unit: 1 is perfect, 0 is no better than always answering the mean, below is worse than that.

Example
-------
    >>> import torch
    >>> rows = r_squared_rows(torch.tensor([2.5, 0.0, 2.0, 8.0]), torch.tensor([3.0, -0.5, 2.0, 7.0]))
    >>> round(R_SQUARED.figure(rows.numpy()), 4)
    0.9486

Use instead
-----------
Root mean squared error where the unit matters, or where test sets with different spread are compared.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
Where all targets of a quantity are equal, as with one sample, it is undefined, and refused (scikit-learn gives NaN
for one sample, and 0 or 1 for equal targets). Each number of a sample's own shape is a quantity.

Source
------
sklearn.metrics.r2_score with multioutput="uniform_average", whose figures it reproduces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalmode.errors import UndefinedFigureError
from evalmode.measure.exact import exact_mean, exact_sum
from evalmode.measure.metric import Aggregate, Metric, equal_length, same_shape

__all__ = ["R_SQUARED", "r_squared_rows"]


def r_squared_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """Each sample's squared errors, then its targets.

    Shapes: outputs and target `(N, ...)` of K numbers each, equal; `(N, 1)` and `(N,)` meet; gives `(N, 2 K)` float64.

    Raises:
        BatchError: shapes or lengths differ, or a value is NaN.
    """
    equal_length(outputs, target, metric="R²")
    wide, wanted = (values.reshape(len(values), -1) for values in same_shape(outputs, target, metric="R²"))
    return torch.cat([(wide - wanted).square(), wanted], dim=1)


@dataclass(frozen=True, slots=True)
class _Explained:
    """One minus residual over total sum of squares, averaged over quantities."""

    def figure(self, rows: NDArray[Any]) -> float:
        quantities = rows.shape[1] // 2
        parts: list[float] = []
        for quantity in range(quantities):
            targets = rows[:, quantities + quantity]
            total = exact_sum((targets - exact_mean(targets)) ** 2)
            if bool((targets == targets[0]).all()) or total == 0:
                raise UndefinedFigureError(
                    f"R² of {len(rows)} samples whose targets are all {targets[0]:g}",
                    expected="targets that differ",
                    fix="metrics = ['root mean squared error']",
                )
            parts.append(1 - exact_sum(rows[:, quantity]) / total)
        return math.fsum(parts) / len(parts)

    def resampled(self, rows: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
        quantities = rows.shape[1] // 2
        targets = rows[:, quantities:] - rows[:, quantities:].mean(0)  # about 0, so that squares cancel little
        read = np.concatenate([rows[:, :quantities], targets, targets**2], axis=1)
        wide = weights.astype(np.float64)
        residual, first, second = np.split(np.einsum("rn,nk->rk", wide, read), 3, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            total = second - first**2 / wide.sum(1)[:, None]
        total = np.where(total > 1e-12 * second, total, np.nan)  # what rounding leaves of equal targets
        return np.asarray((1 - residual / total).mean(1), np.float64)

    def trials(self, rows: NDArray[Any]) -> tuple[int, ...]:
        return ()


R_SQUARED = Metric("R²", r_squared_rows, Aggregate.STATISTIC, True, _Explained(), most=1.0)
