"""ECE: how far the confidence of the answers is from the share of right ones.

What it does
------------
Samples are sorted into 15 bins of equal width by their confidence, the highest class probability; of each bin the
distance between mean confidence and share of right answers is taken, and averaged with the share of samples as weight.
Bin i holds confidences above i/15 up to (i+1)/15, the first one 0 as well. For one logit per sample (`binary ECE`) the
probability of the positive class is binned against the share of positives. From logits, and, where it is asked for by
name, from probabilities (`... of probabilities`).

Why it matters
--------------
A model that says 90 % should be right nine times in ten; users act on that number.

Example
-------
    >>> import torch
    >>> rows = ece_of_probabilities_rows(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1]))
    >>> ECE_OF_PROBABILITIES.figure(rows.numpy())
    0.25

Use instead
-----------
The Brier score or log loss to rank models: they have no bins, and cannot be won by answering the base rate.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
It is biased upwards: with few samples in a bin, chance alone parts confidence and share, so that a perfectly
calibrated model has an ECE above 0 and the bootstrap interval lies too high. Its value depends on the number of bins.
A sample of one gives the distance of its confidence from 1 or 0.

Source
------
Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI (2015); Guo et
al., "On calibration of modern neural networks", ICML (2017), equation 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalmode.measure.exact import exact_sum
from evalmode.measure.metric import Aggregate, Metric, class_indices, equal_length
from evalmode.measure.probabilities import (
    checked_probabilities,
    checked_share,
    probabilities_of_logits,
    share_of_logits,
)

__all__ = [
    "BINARY_ECE",
    "BINARY_ECE_OF_PROBABILITIES",
    "BINS",
    "ECE",
    "ECE_OF_PROBABILITIES",
    "binary_ece_of_probabilities_rows",
    "binary_ece_rows",
    "ece_of_probabilities_rows",
    "ece_rows",
    "in_bins",
]

BINS = 15


def in_bins(confidence: NDArray[np.float64], bins: int = BINS) -> NDArray[np.int64]:
    """The number of the bin of equal width that each confidence falls in: above its lower edge, up to its upper one.

    Shapes: `(N,)`, from 0 to 1; gives `(N,)`, 0 to `bins` - 1.

    Example:
        >>> in_bins(np.array([0.0, 0.1, 0.2, 1.0]), 10).tolist()
        [0, 0, 1, 9]
    """
    edges = np.arange(1, bins) / bins
    return np.searchsorted(edges, confidence, side="left").astype(np.int64)


def ece_rows(logits: Tensor, target: Tensor) -> Tensor:
    """Each sample's confidence, and 1 where its answer is right, from logits.

    Shapes: logits `(N, C)`; target `(N,)` or `(N, 1)` class indices; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a logit is NaN.
    """
    equal_length(logits, target, metric="ECE")
    return _of_answers(probabilities_of_logits(logits, metric="ECE"), target, "ECE")


def ece_of_probabilities_rows(probabilities: Tensor, target: Tensor) -> Tensor:
    """Each sample's confidence, and 1 where its answer is right, from probabilities.

    Shapes: probabilities `(N, C)`, rows that sum to 1; target `(N,)` or `(N, 1)`; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a row is no distribution.
    """
    equal_length(probabilities, target, metric="ECE of probabilities")
    rows = checked_probabilities(probabilities, metric="ECE of probabilities")
    return _of_answers(rows, target, "ECE of probabilities")


def binary_ece_rows(logits: Tensor, target: Tensor) -> Tensor:
    """Each sample's probability of the positive class, and its target, from one logit.

    Shapes: logits `(N,)` or `(N, 1)`; target the same, of 0 and 1; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, a target is neither 0 nor 1, a logit is NaN.
    """
    equal_length(logits, target, metric="binary ECE")
    return _of_positive(share_of_logits(logits, metric="binary ECE"), target, "binary ECE")


def binary_ece_of_probabilities_rows(probabilities: Tensor, target: Tensor) -> Tensor:
    """Each sample's probability of the positive class, and its target.

    Shapes: probabilities `(N,)` or `(N, 1)`; target the same, of 0 and 1; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, a target is neither 0 nor 1, a number is outside 0 to 1.
    """
    equal_length(probabilities, target, metric="binary ECE of probabilities")
    shares = checked_share(probabilities, metric="binary ECE of probabilities")
    return _of_positive(shares, target, "binary ECE of probabilities")


@dataclass(frozen=True, slots=True)
class _Gaps:
    """The gap between the summed confidence and outcome of each bin, over the number of samples."""

    def figure(self, rows: NDArray[Any]) -> float:
        bins = in_bins(rows[:, 0])
        # Confidences and minus the outcomes in one correctly rounded sum: differences would be rounded first.
        gaps = [abs(exact_sum(np.append(rows[bins == one, 0], -rows[bins == one, 1]))) for one in np.unique(bins)]
        return exact_sum(np.array(gaps)) / len(rows)

    def resampled(self, rows: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
        bins = in_bins(rows[:, 0])
        order = np.argsort(bins, kind="stable")
        starts = np.unique(bins[order], return_index=True)[1]
        gaps = np.add.reduceat((weights * (rows[:, 0] - rows[:, 1]))[:, order], starts, axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.abs(gaps).sum(1) / weights.sum(1), np.float64)

    def trials(self, rows: NDArray[Any]) -> tuple[int, ...]:
        return ()


def _of_answers(rows: NDArray[np.float64], target: Tensor, metric: str) -> Tensor:
    right = rows.argmax(1) == class_indices(target, classes=rows.shape[1], metric=metric).numpy()
    return torch.from_numpy(np.stack([rows.max(1).clip(0.0, 1.0), right.astype(np.float64)], axis=1))


def _of_positive(shares: NDArray[np.float64], target: Tensor, metric: str) -> Tensor:
    positive = class_indices(target, classes=2, metric=metric).numpy()
    return torch.from_numpy(np.stack([shares, positive.astype(np.float64)], axis=1))


_CAVEAT = "ECE is biased upwards, and so is its interval"

ECE = Metric("ECE", ece_rows, Aggregate.STATISTIC, False, _Gaps(), _CAVEAT, least=0.0, most=1.0)
ECE_OF_PROBABILITIES = Metric(
    "ECE of probabilities", ece_of_probabilities_rows, Aggregate.STATISTIC, False, _Gaps(), _CAVEAT, least=0.0, most=1.0
)
BINARY_ECE = Metric("binary ECE", binary_ece_rows, Aggregate.STATISTIC, False, _Gaps(), _CAVEAT, least=0.0, most=1.0)
BINARY_ECE_OF_PROBABILITIES = Metric(
    "binary ECE of probabilities",
    binary_ece_of_probabilities_rows,
    Aggregate.STATISTIC,
    False,
    _Gaps(),
    _CAVEAT,
    least=0.0,
    most=1.0,
)
