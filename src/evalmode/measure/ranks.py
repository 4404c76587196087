"""Figures of how scores rank the samples of a class above the others: what AUROC and average precision share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalmode.errors import UndefinedFigureError
from evalmode.measure.metric import class_indices, columns, equal_length
from evalmode.measure.probabilities import checked_probabilities, finite_logits, probabilities_of_logits

__all__ = ["RankStatistic", "ranked", "ranked_probabilities"]


def ranked(outputs: Tensor, target: Tensor, *, metric: str) -> Tensor:
    """Each sample's scores and, last, its target.

    One score per sample ranks as it is; of two class scores their difference ranks; of more, their softmax.

    Shapes: outputs `(N,)`, `(N, 1)` or `(N, C)`; target `(N,)` or `(N, 1)`; gives `(N, 2)`, from three classes on
    `(N, C + 1)`, float64.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
    """
    equal_length(outputs, target, metric=metric)
    if _one_each(outputs):
        scores = columns(outputs, metric=metric, what="scores").numpy()[:, None]
    elif outputs.ndim == 2 and outputs.shape[1] == 2:
        logits = finite_logits(outputs, metric=metric)
        scores = logits[:, 1:] - logits[:, :1]
    else:
        scores = probabilities_of_logits(outputs, metric=metric)
    return _beside(scores, target, metric)


def ranked_probabilities(outputs: Tensor, target: Tensor, *, metric: str) -> Tensor:
    """Each sample's probabilities and, last, its target; of two classes the second one's probability.

    Shapes: outputs `(N, C)`, rows that sum to 1; target `(N,)` or `(N, 1)`; gives `(N, 2)`, from three classes on
    `(N, C + 1)`, float64.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a row is no distribution.
    """
    equal_length(outputs, target, metric=metric)
    scores = checked_probabilities(outputs, metric=metric)
    return _beside(scores[:, 1:] if scores.shape[1] == 2 else scores, target, metric)


@dataclass(frozen=True, slots=True)
class RankStatistic:
    """A figure of the positives and negatives at each distinct score, from the lowest score to the highest.

    `exact` gives it from whole numbers `(T,)`, NaN where it is undefined; `many` from `(R, T)`. Of several classes it
    is the mean over those for which it is defined, each against the rest. `pairs` says that it is a share of pairs.
    """

    name: str
    exact: Callable[[NDArray[np.int64], NDArray[np.int64]], float]
    many: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
    pairs: bool = False

    def figure(self, rows: NDArray[Any]) -> float:
        """The figure of rows `(N, C + 1)` of scores and target.

        Raises:
            UndefinedFigureError: no class has both the samples and the rest that it needs.
        """
        each = [self._exact_of(rows[:, column], positive) for column, positive in _against_the_rest(rows)]
        known = [value for value in each if not math.isnan(value)]
        if not known:
            found = ", ".join(str(int(label)) for label in np.unique(rows[:, -1])[:3])
            raise UndefinedFigureError(
                f"{self.name} of {len(rows)} samples whose targets are all of class {found}",
                expected="samples of the class and of another one",
                fix="measure it on data of more classes, or use accuracy here",
            )
        return math.fsum(known) / len(known)

    def resampled(self, rows: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
        """The figures of R weightings `(R, N)` of rows `(N, C + 1)`."""
        wide = weights.astype(np.float64)
        sums, known = np.zeros(len(wide)), np.zeros(len(wide))
        with np.errstate(invalid="ignore", divide="ignore"):
            for column, positive in _against_the_rest(rows):
                order, starts = _ties(rows[:, column])
                ordered = wide if order is None else wide[:, order]
                above = ordered * (positive if order is None else positive[order])
                below = ordered - above
                if len(starts) < len(rows):
                    above, below = (np.add.reduceat(part, starts, axis=1) for part in (above, below))
                values = self.many(above, below)
                there = ~np.isnan(values)
                sums[there] += values[there]
                known += there
            return np.asarray(sums / known, np.float64)

    def trials(self, rows: NDArray[Any]) -> tuple[int, ...]:
        """The disjoint pairs of each class with the rest, where the figure is a share of pairs."""
        counts = [int(positive.sum()) for _, positive in _against_the_rest(rows)] if self.pairs else []
        return tuple(min(count, len(rows) - count) for count in counts if 0 < count < len(rows))

    def _exact_of(self, scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
        order, starts = _ties(scores)
        there = (positive if order is None else positive[order]).astype(np.int64)
        above = np.add.reduceat(there, starts)
        return self.exact(above, np.add.reduceat(1 - there, starts))


def _against_the_rest(rows: NDArray[Any]) -> list[tuple[int, NDArray[np.bool_]]]:
    """The column of scores and the positives of each class that occurs; of two classes, of the second one."""
    target = rows[:, -1]
    if rows.shape[1] == 2:
        return [(0, target == 1)]
    return [(int(label), target == label) for label in np.unique(target)]


def _ties(scores: NDArray[Any]) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """The ascending order, None where it is there already, and where each distinct score begins in it."""
    order = None
    if bool((scores[1:] < scores[:-1]).any()):
        order = np.argsort(scores, kind="stable")
        scores = scores[order]
    new = np.ones(len(scores), np.bool_)
    new[1:] = scores[1:] != scores[:-1]
    return order, np.flatnonzero(new)


def _beside(scores: NDArray[np.float64], target: Tensor, metric: str) -> Tensor:
    classes = max(2, scores.shape[1])
    labels = class_indices(target, classes=classes, metric=metric).double()
    return torch.cat([torch.from_numpy(np.ascontiguousarray(scores)), labels[:, None]], dim=1)


def _one_each(outputs: Tensor) -> bool:
    return outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1)
