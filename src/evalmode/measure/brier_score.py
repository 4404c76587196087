"""Brier score: the squared distance between the probabilities and what happened.

What it does
------------
For several classes (`Brier score`) the sum over all classes of (probability - 1 or 0) squared, Brier's own definition,
from 0 to 2; for one logit per sample (`binary Brier score`) the square for the positive class alone, from 0 to 1, half
of the former. From logits, and, where it is asked for by name, from probabilities (`... of probabilities`).

Why it matters
--------------
It rewards right answers and honest confidence together, and stays finite where the model was sure and wrong.

Example
-------
    >>> import torch
    >>> brier_score_per_sample(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor([0.5000], dtype=torch.float64)

Use instead
-----------
Log loss where a wrong answer given with certainty must cost more; ECE for calibration alone.

Fix and its safety
------------------
Nothing to fix: it reads outputs and changes nothing.

Limits
------
Each sample counts once, without class weights. Two class scores give the sum over both: twice the binary score.

Source
------
Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78 (1950);
sklearn.metrics.brier_score_loss (scale_by_half=False for several classes), whose figures it reproduces.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalmode.measure.metric import Metric, class_indices, equal_length
from evalmode.measure.probabilities import (
    checked_probabilities,
    checked_share,
    probabilities_of_logits,
    share_of_logits,
)

__all__ = [
    "BINARY_BRIER_SCORE",
    "BINARY_BRIER_SCORE_OF_PROBABILITIES",
    "BRIER_SCORE",
    "BRIER_SCORE_OF_PROBABILITIES",
    "binary_brier_score_of_probabilities_per_sample",
    "binary_brier_score_per_sample",
    "brier_score_of_probabilities_per_sample",
    "brier_score_per_sample",
]


def brier_score_per_sample(logits: Tensor, target: Tensor) -> Tensor:
    """Each sample's Brier score over all classes, from logits.

    Shapes: logits `(N, C)`; target `(N,)` or `(N, 1)` class indices; gives `(N,)` float64. Units: 0 to 2.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a logit is NaN.
    """
    equal_length(logits, target, metric="Brier score")
    return _over_classes(probabilities_of_logits(logits, metric="Brier score"), target, "Brier score")


def brier_score_of_probabilities_per_sample(probabilities: Tensor, target: Tensor) -> Tensor:
    """Each sample's Brier score over all classes, from probabilities.

    Shapes: probabilities `(N, C)`, rows that sum to 1; target `(N,)` or `(N, 1)`; gives `(N,)` float64. Units: 0 to 2.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a row is no distribution.
    """
    name = "Brier score of probabilities"
    equal_length(probabilities, target, metric=name)
    return _over_classes(checked_probabilities(probabilities, metric=name), target, name)


def binary_brier_score_per_sample(logits: Tensor, target: Tensor) -> Tensor:
    """Each sample's Brier score of the positive class, from one logit.

    Shapes: logits `(N,)` or `(N, 1)`; target the same, of 0 and 1; gives `(N,)` float64. Units: 0 to 1.

    Raises:
        BatchError: shapes or lengths do not fit, a target is neither 0 nor 1, a logit is NaN.
    """
    equal_length(logits, target, metric="binary Brier score")
    return _of_positive(share_of_logits(logits, metric="binary Brier score"), target, "binary Brier score")


def binary_brier_score_of_probabilities_per_sample(probabilities: Tensor, target: Tensor) -> Tensor:
    """Each sample's Brier score of the positive class, from its probability.

    Shapes: probabilities `(N,)` or `(N, 1)`; target the same, of 0 and 1; gives `(N,)` float64. Units: 0 to 1.

    Raises:
        BatchError: shapes or lengths do not fit, a target is neither 0 nor 1, a number is outside 0 to 1.
    """
    name = "binary Brier score of probabilities"
    equal_length(probabilities, target, metric=name)
    return _of_positive(checked_share(probabilities, metric=name), target, name)


def _over_classes(rows: NDArray[np.float64], target: Tensor, metric: str) -> Tensor:
    away = rows.copy()
    away[np.arange(len(rows)), class_indices(target, classes=rows.shape[1], metric=metric).numpy()] -= 1
    return torch.from_numpy((away**2).sum(1))


def _of_positive(shares: NDArray[np.float64], target: Tensor, metric: str) -> Tensor:
    return torch.from_numpy((shares - class_indices(target, classes=2, metric=metric).numpy()) ** 2)


BRIER_SCORE = Metric("Brier score", brier_score_per_sample, higher_is_better=False, least=0.0)
BRIER_SCORE_OF_PROBABILITIES = Metric(
    "Brier score of probabilities", brier_score_of_probabilities_per_sample, higher_is_better=False, least=0.0
)
BINARY_BRIER_SCORE = Metric("binary Brier score", binary_brier_score_per_sample, higher_is_better=False, least=0.0)
BINARY_BRIER_SCORE_OF_PROBABILITIES = Metric(
    "binary Brier score of probabilities",
    binary_brier_score_of_probabilities_per_sample,
    higher_is_better=False,
    least=0.0,
)
