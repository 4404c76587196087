"""Balanced accuracy: the share of right answers in each class, averaged over the classes.

What it does
------------
The recall of each class that occurs among the targets, and their mean: every class weighs the same, however rare.
Answers are taken from class scores or class indices (`balanced accuracy`), from one logit per sample
(`binary balanced accuracy`), or from the probability of the positive class
(`binary balanced accuracy of probabilities`).

Why it matters
--------------
Where one class makes up most of the data, answering it always gives a high accuracy and a poor balanced one.

Example
-------
    >>> import torch
    >>> rows = balanced_accuracy_rows(torch.tensor([1, 1, 1, 0]), torch.tensor([1, 1, 1, 0]))
    >>> BALANCED_ACCURACY.figure(rows.numpy())
    1.0

Use instead
-----------
Accuracy where the classes occur in the test data as often as in use.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
A class without samples has no recall and is left out of the mean, in the figure and in every resample. One class
alone gives that class's recall. A sample of one is right or wrong: 1 or 0, without an interval. Where all answers are
right, or none, the interval is the mean of the classes' exact ones.

Source
------
Brodersen et al., "The balanced accuracy and its posterior distribution", ICPR (2010);
sklearn.metrics.balanced_accuracy_score, whose figures it reproduces.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evalmode.measure.decisions import DecisionStatistic, decided, decided_binary, decided_binary_of_probabilities
from evalmode.measure.metric import share_of_decisions

__all__ = [
    "BALANCED_ACCURACY",
    "BINARY_BALANCED_ACCURACY",
    "BINARY_BALANCED_ACCURACY_OF_PROBABILITIES",
    "balanced_accuracy_rows",
    "binary_balanced_accuracy_of_probabilities_rows",
    "binary_balanced_accuracy_rows",
]


def balanced_accuracy_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """Target and answer of each sample, from class scores or class indices.

    Shapes: outputs `(N, C)` or `(N,)` whole numbers; target `(N,)` or `(N, 1)`; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
    """
    return decided(outputs, target, metric="balanced accuracy")


def binary_balanced_accuracy_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """Target and answer of each sample, from one logit per sample.

    Shapes: outputs `(N,)`, `(N, 1)` or `(N, 2)`; target `(N,)` or `(N, 1)`; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, a target is neither 0 nor 1, a score is NaN.
    """
    return decided_binary(outputs, target, metric="binary balanced accuracy")


def binary_balanced_accuracy_of_probabilities_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """Target and answer of each sample, from the probability of the positive class.

    Shapes: outputs `(N,)` or `(N, 1)`; target the same; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, a target is neither 0 nor 1, a number is outside 0 to 1.
    """
    return decided_binary_of_probabilities(outputs, target, metric="binary balanced accuracy of probabilities")


def _exact(right: NDArray[np.int64], _: NDArray[np.int64], samples: NDArray[np.int64]) -> float:
    there = samples > 0
    return math.fsum(right[there] / samples[there]) / int(there.sum())


def _many(right: NDArray[np.float64], _: NDArray[np.float64], samples: NDArray[np.float64]) -> NDArray[np.float64]:
    recalls = np.divide(right, samples, out=np.zeros_like(right), where=samples > 0)
    return np.asarray(recalls.sum(1) / (samples > 0).sum(1), np.float64)


_STATISTIC = DecisionStatistic(_exact, _many, recalls=True)
BALANCED_ACCURACY = share_of_decisions("balanced accuracy", balanced_accuracy_rows, _STATISTIC)
BINARY_BALANCED_ACCURACY = share_of_decisions("binary balanced accuracy", binary_balanced_accuracy_rows, _STATISTIC)
BINARY_BALANCED_ACCURACY_OF_PROBABILITIES = share_of_decisions(
    "binary balanced accuracy of probabilities", binary_balanced_accuracy_of_probabilities_rows, _STATISTIC
)
