"""Decisions: which class each sample was answered with, and figures of how often which was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalmode.errors import BatchError
from evalmode.measure.metric import class_indices, class_scores, columns, equal_length
from evalmode.measure.probabilities import checked_share

__all__ = ["DecisionStatistic", "decided", "decided_binary", "decided_binary_of_probabilities"]


def decided(outputs: Tensor, target: Tensor, *, metric: str) -> Tensor:
    """Target and answer of each sample, from class scores or class indices.

    Shapes: outputs `(N, C)` scores or `(N,)` class indices; target `(N,)` or `(N, 1)`; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
    """
    equal_length(outputs, target, metric=metric)
    if outputs.is_floating_point():
        scores = class_scores(outputs, metric=metric)
        return _pair(class_indices(target, classes=scores.shape[1], metric=metric), scores.argmax(1))
    answers = class_indices(outputs, classes=None, metric=f"{metric} of the predictions")
    return _pair(class_indices(target, classes=None, metric=metric), answers)


def decided_binary(outputs: Tensor, target: Tensor, *, metric: str) -> Tensor:
    """Target and answer, 0 or 1, from one logit per sample (positive above 0), two class scores, or class indices.

    Shapes: outputs `(N,)`, `(N, 1)` or `(N, 2)`; target `(N,)` or `(N, 1)`; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, there are more than two classes, a score is NaN.
    """
    equal_length(outputs, target, metric=metric)
    if outputs.ndim == 2 and outputs.shape[1] > 2:
        raise BatchError(
            f"{metric}: {outputs.shape[1]} class scores per sample",
            expected="one logit, or two class scores",
            fix=f"metrics = [{metric.replace('binary', 'macro')!r}]" if "F1" in metric else None,
        )
    wanted = class_indices(target, classes=2, metric=metric)
    if not outputs.is_floating_point():
        return _pair(wanted, class_indices(outputs, classes=2, metric=f"{metric} of the predictions"))
    if outputs.ndim == 2 and outputs.shape[1] == 2:
        return _pair(wanted, class_scores(outputs, metric=metric).argmax(1))
    return _pair(wanted, columns(outputs, metric=metric, what="logits") > 0)


def decided_binary_of_probabilities(outputs: Tensor, target: Tensor, *, metric: str) -> Tensor:
    """Target and answer, 0 or 1, from the probability of the positive class (positive above one half).

    Shapes: outputs `(N,)` or `(N, 1)`; target the same; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, or a number is outside 0 to 1.
    """
    equal_length(outputs, target, metric=metric)
    shares = checked_share(outputs, metric=metric)
    return _pair(class_indices(target, classes=2, metric=metric), torch.from_numpy(shares > 0.5))


@dataclass(frozen=True, slots=True)
class DecisionStatistic:
    """A figure of three counts for each class: right answers, answers, and samples.

    `exact` gives the figure of whole numbers `(L,)`, in the order of the classes that occur; `many` that of `(R, L)`,
    where a class may be absent from some of the R. With `labels`, these are the classes, whether they occur or not.
    `recalls` says that the figure is the mean of the classes' shares of right answers.
    """

    exact: Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], float]
    many: Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
    labels: tuple[int, ...] | None = None
    recalls: bool = False

    def figure(self, rows: NDArray[Any]) -> float:
        """The figure of rows `(N, 2)` of target and answer."""
        labels = self._labels(rows)
        same = rows[:, 0] == rows[:, 1]
        one = np.ones((1, len(rows)))
        right, answers, samples = (
            _by_label(one[:, : len(values)], values, labels)[0].astype(np.int64)
            for values in (rows[same, 0], rows[:, 1], rows[:, 0])
        )
        return self.exact(right, answers, samples)

    def resampled(self, rows: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
        """The figures of R weightings `(R, N)` of rows `(N, 2)`."""
        labels = self._labels(rows)
        wide = weights.astype(np.float64)
        same = rows[:, 0] == rows[:, 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.many(
                _by_label(wide[:, same], rows[same, 0], labels),
                _by_label(wide, rows[:, 1], labels),
                _by_label(wide, rows[:, 0], labels),
            )

    def trials(self, rows: NDArray[Any]) -> tuple[int, ...]:
        """The samples of each class, where the figure is a mean of recalls."""
        return tuple(np.unique(rows[:, 0], return_counts=True)[1].tolist()) if self.recalls else ()

    def _labels(self, rows: NDArray[Any]) -> NDArray[Any]:
        return np.unique(rows) if self.labels is None else np.asarray(self.labels, np.float64)


def _by_label(weights: NDArray[np.float64], values: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """The weight on each label. Shapes: weights `(R, N)`, values `(N,)`, labels `(L,)`; gives `(R, L)`."""
    sums = np.zeros((len(weights), len(labels)))
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    if len(found):
        known = np.isin(found, labels)
        sums[:, np.searchsorted(labels, found[known])] = np.add.reduceat(weights[:, order], starts, axis=1)[:, known]
    return sums


def _pair(target: Tensor, answer: Tensor) -> Tensor:
    return torch.stack([target.double(), answer.double()], dim=1)
