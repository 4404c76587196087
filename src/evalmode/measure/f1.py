"""F1: the harmonic mean of precision and recall, of one class or averaged over classes.

What it does
------------
Twice the right answers of a class over its answers plus its samples. `binary F1` is that of class 1, from one logit
per sample, two class scores or class indices (`binary F1 of probabilities`: from the probability of class 1);
`macro F1` the mean over the classes, `weighted F1` their mean weighted by the samples of each, `micro F1` that of all
counts pooled, which is accuracy where each sample has one class.

Why it matters
--------------
It sees both false alarms and misses, and the many right negatives of a rare class do not raise it.

Example
-------
    >>> import torch
    >>> rows = f1_rows(torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0]))
    >>> MACRO_F1.figure(rows.numpy())
    0.5

Use instead
-----------
Average precision where the threshold is still open; accuracy where classes are balanced.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
The classes averaged are those that occur among targets or answers; others are left out. `binary F1` without a
positive among targets and answers is 0, as scikit-learn has it. The interval of `micro F1` is exact, that of the others
is bootstrapped.

Source
------
van Rijsbergen, "Information Retrieval" (1979); sklearn.metrics.f1_score with average "binary", "macro", "micro" and
"weighted", whose figures it reproduces.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evalmode.measure.decisions import DecisionStatistic, decided, decided_binary, decided_binary_of_probabilities
from evalmode.measure.metric import Aggregate, Metric, share_of_decisions

__all__ = [
    "BINARY_F1",
    "BINARY_F1_OF_PROBABILITIES",
    "MACRO_F1",
    "MICRO_F1",
    "WEIGHTED_F1",
    "binary_f1_of_probabilities_rows",
    "binary_f1_rows",
    "f1_rows",
    "micro_f1_per_sample",
]

Counts = NDArray[np.int64]
Sums = NDArray[np.float64]


def f1_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """Target and answer of each sample, from class scores or class indices.

    Shapes: outputs `(N, C)` or `(N,)` whole numbers; target `(N,)` or `(N, 1)`; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
    """
    return decided(outputs, target, metric="F1")


def micro_f1_per_sample(outputs: Tensor, target: Tensor) -> Tensor:
    """Whether each sample's answer is its target.

    Shapes: as `f1_rows`; gives `(N,)` booleans.

    Raises:
        BatchError: as `f1_rows`.
    """
    rows = decided(outputs, target, metric="micro F1")
    return rows[:, 0] == rows[:, 1]


def binary_f1_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """Target and answer of each sample, from one logit per sample, two class scores, or class indices.

    Shapes: outputs `(N,)`, `(N, 1)` or `(N, 2)`; target `(N,)` or `(N, 1)`; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, there are more than two classes, a score is NaN.
    """
    return decided_binary(outputs, target, metric="binary F1")


def binary_f1_of_probabilities_rows(outputs: Tensor, target: Tensor) -> Tensor:
    """Target and answer of each sample, from the probability of the positive class.

    Shapes: outputs `(N,)` or `(N, 1)`; target the same; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, a target is neither 0 nor 1, a number is outside 0 to 1.
    """
    return decided_binary_of_probabilities(outputs, target, metric="binary F1 of probabilities")


def _each(right: Counts | Sums, answers: Counts | Sums, samples: Counts | Sums) -> Sums:
    """F1 of each class, 0 where it has neither answers nor samples."""
    sizes = answers + samples
    return np.divide(2 * right, sizes, out=np.zeros(right.shape), where=sizes > 0)


def _macro(right: Counts, answers: Counts, samples: Counts) -> float:
    return math.fsum(_each(right, answers, samples)) / len(right)  # each class occurs, as they are found in the rows


def _many_macro(right: Sums, answers: Sums, samples: Sums) -> Sums:
    return np.asarray(_each(right, answers, samples).sum(1) / (answers + samples > 0).sum(1), np.float64)


def _weighted(right: Counts, answers: Counts, samples: Counts) -> float:
    return math.fsum(_each(right, answers, samples) * samples) / int(samples.sum())


def _many_weighted(right: Sums, answers: Sums, samples: Sums) -> Sums:
    return np.asarray((_each(right, answers, samples) * samples).sum(1) / samples.sum(1), np.float64)


def _binary(right: Counts, answers: Counts, samples: Counts) -> float:
    return float(_each(right, answers, samples)[0])


def _many_binary(right: Sums, answers: Sums, samples: Sums) -> Sums:
    return _each(right, answers, samples)[:, 0]


_OF_CLASS_1 = DecisionStatistic(_binary, _many_binary, labels=(1,))
MACRO_F1 = share_of_decisions("macro F1", f1_rows, DecisionStatistic(_macro, _many_macro))
WEIGHTED_F1 = share_of_decisions("weighted F1", f1_rows, DecisionStatistic(_weighted, _many_weighted))
MICRO_F1 = Metric("micro F1", micro_f1_per_sample, Aggregate.PROPORTION, True, decides=True)
BINARY_F1 = share_of_decisions("binary F1", binary_f1_rows, _OF_CLASS_1)
BINARY_F1_OF_PROBABILITIES = share_of_decisions(
    "binary F1 of probabilities", binary_f1_of_probabilities_rows, _OF_CLASS_1
)
