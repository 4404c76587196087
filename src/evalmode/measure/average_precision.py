"""Average precision: the precision at each sample of the class, going down the ranking, averaged.

What it does
------------
The sum over thresholds of precision times the recall gained there, without interpolation; samples of equal score
pass a threshold together. One score per sample, logit or probability, ranks as it is; of two class scores their
difference ranks; of three or more classes it is the mean over the classes, each against the rest, ranked by the softmax
of the logits (`average precision of probabilities`: by the probabilities as they are).

Why it matters
--------------
It judges the top of the ranking, which is what a search or an alarm shows, and it falls where positives are rare.

Example
-------
    >>> import torch
    >>> rows = average_precision_rows(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    >>> round(AVERAGE_PRECISION.figure(rows.numpy()), 4)
    0.8333

Use instead
-----------
AUROC where figures of data with different shares of positives are compared.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
Without a positive sample it is undefined, and refused (scikit-learn warns and gives 0); with positives alone it is
1. A class of several that does not occur is left out of the mean. Its level depends on the share of positives.

Source
------
sklearn.metrics.average_precision_score (average="macro" over the classes that occur), whose figures it reproduces.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evalmode.measure.metric import Aggregate, Metric
from evalmode.measure.ranks import RankStatistic, ranked, ranked_probabilities

__all__ = [
    "AVERAGE_PRECISION",
    "AVERAGE_PRECISION_OF_PROBABILITIES",
    "average_precision_of_probabilities_rows",
    "average_precision_rows",
]


def average_precision_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """Each sample's scores and, last, its target.

    Shapes: outputs `(N,)`, `(N, 1)` or `(N, C)`; target `(N,)` or `(N, 1)`; gives `(N, 2)`, from three classes on
    `(N, C + 1)`, float64.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
    """
    return ranked(outputs, target, metric="average precision")


def average_precision_of_probabilities_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """Each sample's probabilities and, last, its target.

    Shapes: outputs `(N, C)`, rows that sum to 1; target `(N,)` or `(N, 1)`; gives `(N, 2)`, from three classes on
    `(N, C + 1)`, float64.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a row is no distribution.
    """
    return ranked_probabilities(outputs, target, metric="average precision of probabilities")


def _exact(above: NDArray[np.int64], below: NDArray[np.int64]) -> float:
    # From the highest score downwards.
    hits, misses = np.cumsum(above[::-1]), np.cumsum(below[::-1])
    positives = int(hits[-1])
    return math.fsum(above[::-1] * (hits / (hits + misses))) / positives if positives else math.nan


def _many(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    # From the highest score downwards.
    hits = np.cumsum(above[:, ::-1], axis=1)
    shown = hits + np.cumsum(below[:, ::-1], axis=1)
    precision = np.divide(hits, shown, out=np.zeros_like(hits), where=shown > 0)
    return np.asarray(np.einsum("rt,rt->r", above[:, ::-1], precision) / hits[:, -1], np.float64)


_STATISTIC = RankStatistic("average precision", _exact, _many)
AVERAGE_PRECISION = Metric(
    "average precision", average_precision_rows, Aggregate.STATISTIC, True, _STATISTIC, least=0.0, most=1.0
)
AVERAGE_PRECISION_OF_PROBABILITIES = Metric(
    "average precision of probabilities",
    average_precision_of_probabilities_rows,
    Aggregate.STATISTIC,
    True,
    _STATISTIC,
    least=0.0,
    most=1.0,
)
