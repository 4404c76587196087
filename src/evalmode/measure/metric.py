"""What a metric is: its rows, one of each sample, and how the rows of all samples become one figure."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evalmode.errors import BatchError, UsageError
from evalmode.measure.exact import exact_mean

__all__ = [
    "Aggregate",
    "Metric",
    "PerSample",
    "Statistic",
    "class_indices",
    "class_scores",
    "columns",
    "equal_length",
    "first_samples",
    "metric_of",
    "refuse_nan",
    "same_shape",
    "share_of_decisions",
]

PerSample = Callable[[Tensor, Tensor], Tensor]
"""`(outputs, target) -> rows`: one row for each of the N samples, each from its own sample alone."""


class Aggregate(enum.StrEnum):
    """How rows become one figure; it also decides which interval is honest."""

    PROPORTION = "proportion"
    MEAN = "mean"
    ROOT_MEAN = "root mean"
    STATISTIC = "statistic"
    """A figure of all samples together, as a rank statistic or a ratio of sums: the metric's `statistic` makes it."""


class Statistic(Protocol):
    """A figure of all rows together.

    `figure` is exact: the same rows give the same bits in any order. `resampled` is the same figure where row i counts
    `weights[r, i]` times, for each r at once; NaN where such a sample leaves it undefined.

    Shapes: rows `(N, K)`; weights `(R, N)`, whole numbers; `resampled` gives `(R,)`.
    """

    def figure(self, rows: NDArray[Any]) -> float:
        """The figure of all rows; `UsageError` where they leave it undefined."""
        ...

    def resampled(self, rows: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
        """The figures of R weightings of the rows."""
        ...

    def trials(self, rows: NDArray[Any]) -> tuple[int, ...]:
        """Where the figure is a mean of success shares: how many independent trials each share has; else nothing.

        Read where all succeeded or all failed, when resampling says nothing and counting still does.
        """
        ...


@dataclass(frozen=True, slots=True)
class Metric:
    """A named figure over a test set, in two pure parts: `per_sample` and `figure`.

    `higher_is_better` is None where nobody said it, as of a user's own function. `caveat` is what its intervals do not
    cover, and is said beside their method. `decides` says that it reads decisions alone: it takes class indices, as a
    task's `prediction` gives them, as well as scores. No figure lies below `least` or above `most`.

    Shapes: `per_sample` takes outputs and target with N samples along axis 0 and gives `(N,)` booleans for a
    proportion, `(N,)` float64 for a mean, and `(N, K)` float64 for a statistic. Samples are the only thing summed over,
    so that the figure does not depend on how the data was cut into batches.

    Example:
        >>> error = Metric("error", lambda outputs, target: (outputs - target).abs(), higher_is_better=False)
        >>> error.figure(np.array([1.0, 2.0]))
        1.5
    """

    name: str
    per_sample: PerSample
    aggregate: Aggregate = Aggregate.MEAN
    higher_is_better: bool | None = None
    statistic: Statistic | None = None
    caveat: str = ""
    decides: bool = False
    least: float = -math.inf
    most: float = math.inf

    def __post_init__(self) -> None:
        if (self.aggregate is Aggregate.STATISTIC) != (self.statistic is not None):
            raise UsageError(
                f"the metric {self.name!r} has aggregate {self.aggregate} and statistic {self.statistic!r}",
                expected="a statistic for Aggregate.STATISTIC, and for nothing else",
            )

    @property
    def range(self) -> tuple[float, float]:
        """Between what the figure lies."""
        return (0.0, 1.0) if self.aggregate is Aggregate.PROPORTION else (self.least, self.most)

    def figure(self, rows: NDArray[Any]) -> float:
        """The value over all rows: the same bits in any order of the rows.

        Shapes: `(N,)` or `(N, K)`, as `per_sample` gives them.

        Raises:
            UsageError: there are no rows, or they leave the figure undefined, as AUROC where all targets are one class.
        """
        if not len(rows):
            raise UsageError(f"{self.name} of no samples", expected="at least one sample")
        if self.statistic is not None:
            return self.statistic.figure(rows)
        if rows.ndim != 1:
            raise UsageError(
                f"{self.name}: rows of shape {rows.shape}", expected="one value per sample, shape (samples,)"
            )
        if self.aggregate is Aggregate.PROPORTION:
            return int(np.count_nonzero(rows)) / rows.size
        mean = exact_mean(rows.astype(np.float64))
        return math.sqrt(mean) if self.aggregate is Aggregate.ROOT_MEAN else mean

    def resampled(self, rows: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
        """The figure where row i counts `weights[r, i]` times, for each r; NaN where that leaves it undefined.

        Shapes: rows as in `figure`; weights `(R, N)`, whole numbers; gives `(R,)`.
        """
        if self.statistic is not None:
            return self.statistic.resampled(rows, weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            sums = np.einsum("rn,n->r", weights.astype(np.float64), rows.astype(np.float64))
            means = np.asarray(sums / weights.sum(1), np.float64)
        return np.sqrt(means) if self.aggregate is Aggregate.ROOT_MEAN else means


def share_of_decisions(name: str, per_sample: PerSample, statistic: Statistic) -> Metric:
    """A statistic of decisions that is a share: it reads class indices too, lies from 0 to 1, and more is better."""
    return Metric(name, per_sample, Aggregate.STATISTIC, True, statistic, decides=True, least=0.0, most=1.0)


def metric_of(name: str, rows: NDArray[Any], *, higher_is_better: bool | None = None) -> Metric:
    """A metric made on the spot for rows that a user's own function gave: booleans are a proportion, numbers a mean.

    Shapes: `(N,)`.

    Example:
        >>> metric_of("solved", np.array([True, False])).aggregate.value
        'proportion'
    """

    def per_sample(outputs: Tensor, target: Tensor) -> Tensor:
        raise UsageError(
            f"{name!r} was measured by a function that is not kept with its values",
            expected="a metric of the catalog, or the function itself",
        )

    if rows.ndim != 1:
        raise UsageError(f"{name}: rows of shape {rows.shape}", expected="one value per sample, shape (samples,)")
    proportion = rows.dtype == np.bool_
    aggregate = Aggregate.PROPORTION if proportion else Aggregate.MEAN
    return Metric(name, per_sample, aggregate, higher_is_better)  # whether true is good, only its author knows


def first_samples(bad: Tensor) -> str:
    """How many entries of a boolean tensor over samples are true, and which comes first: `2 of 8 samples (first: 3)`.

    Example:
        >>> import torch
        >>> first_samples(torch.tensor([False, True, True]))
        '2 of 3 samples (first: 1)'
    """
    rows = bad.reshape(len(bad), -1).any(1)
    return f"{int(rows.sum())} of {len(rows)} samples (first: {int(rows.nonzero()[0])})"


def class_indices(target: Tensor, *, classes: int | None, metric: str) -> Tensor:
    """The target as class indices of shape `(N,)`, int64, on the CPU.

    Shapes: `(N,)` or `(N, 1)`, integers or booleans, or floats that hold whole numbers.

    Raises:
        BatchError: it has another shape, is not whole, or names a class outside 0 to `classes` - 1.
    """
    target = target.detach().cpu()
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim != 1 or target.is_complex():
        raise BatchError(
            f"{metric}: the target has shape {tuple(target.shape)} and dtype {target.dtype}",
            expected="one class index per sample, shape (N,)",
            fix=f"return class indices from split(batch), or write `{metric}` for this target as a function",
        )
    if target.is_floating_point() and bool((bad := target != target.trunc()).any()):
        raise BatchError(
            f"{metric}: the target is no whole number in {first_samples(bad)}",
            expected="class indices",
            fix="for a regression use metrics = ['mean absolute error', 'root mean squared error']",
        )
    indices = target.long()
    bad = indices < 0 if classes is None else (indices < 0) | (indices >= classes)
    if bool(bad.any()):
        upper = "" if classes is None else f" to {classes - 1}"
        raise BatchError(
            f"{metric}: the class index is {int(indices[bad][0])} in {first_samples(bad)}",
            expected=f"class indices from 0{upper}",
            fix="leave samples without a class out in split(batch), or number the classes as the model does",
        )
    return indices


def columns(values: Tensor, *, metric: str, what: str) -> Tensor:
    """Values of shape `(N,)` or `(N, 1)` as float64 of shape `(N,)` on the CPU.

    Raises:
        BatchError: another shape, or a NaN.
    """
    values = values.detach().cpu()
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise BatchError(
            f"{metric}: the {what} have shape {tuple(values.shape)}",
            expected="one number per sample, shape (N,) or (N, 1)",
            fix="pick one with prediction(outputs)",
        )
    refuse_nan(values, metric=metric, what=what)
    return values.double()


def refuse_nan(values: Tensor, *, metric: str, what: str) -> None:
    """Raises `BatchError` where a value is NaN: an answer that is no number is neither right nor wrong."""
    if values.is_floating_point() and bool((bad := values.isnan()).any()):
        raise BatchError(
            f"{metric}: the {what} are NaN in {first_samples(bad)}",
            expected="numbers",
            fix="evalmode check TASK   # its clause `finite` points at the line",
            explain="finite",
        )


def same_shape(outputs: Tensor, target: Tensor, *, metric: str) -> tuple[Tensor, Tensor]:
    """Outputs and target as float64 on the CPU, of one shape and free of NaN; `(N, 1)` and `(N,)` meet as `(N,)`.

    Raises:
        BatchError: the shapes differ: they are never broadcast, which would pair each sample with every other one.
    """
    outputs, target = outputs.detach().cpu(), target.detach().cpu()
    if outputs.shape != target.shape and outputs.shape[:1] == target.shape[:1]:
        outputs, target = (
            values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values for values in (outputs, target)
        )
    if outputs.shape != target.shape or outputs.ndim == 0 or outputs.is_complex() or target.is_complex():
        raise BatchError(
            f"{metric}: outputs of shape {tuple(outputs.shape)} against a target of shape {tuple(target.shape)}",
            expected="the same real-valued shape (N, ...)",
            fix="make them meet in prediction(outputs) or split(batch); shapes are never broadcast",
        )
    refuse_nan(outputs, metric=metric, what="outputs")
    refuse_nan(target, metric=metric, what="targets")
    return outputs.double(), target.double()


def equal_length(outputs: Tensor, target: Tensor, *, metric: str) -> None:
    """Raises `BatchError` where outputs and target do not hold the same number of samples, or none."""
    got = tuple(len(values) if values.ndim else None for values in (outputs, target))
    if got[0] != got[1] or not got[0]:
        raise BatchError(
            f"{metric}: {got[0]} outputs (shape {tuple(outputs.shape)}) and {got[1]} targets "
            f"(shape {tuple(target.shape)})",
            expected="the same number of samples along axis 0, at least one",
            fix="look at what split(batch) and prediction(outputs) return",
        )


def class_scores(scores: Tensor, *, metric: str) -> Tensor:
    """Class scores of shape `(N, C)`, free of NaN, on the CPU.

    Raises:
        BatchError: another shape or dtype, or a NaN.
    """
    scores = scores.detach().cpu()
    if scores.ndim != 2 or scores.shape[1] < 2 or not scores.is_floating_point():
        raise BatchError(
            f"{metric}: the outputs have shape {tuple(scores.shape)} and dtype {scores.dtype}",
            expected="one score per class, shape (N, C) with C of at least 2",
            fix=f"pick them with prediction(outputs), or write `{metric}` for this model as a function",
        )
    refuse_nan(scores, metric=metric, what="scores")
    return scores
