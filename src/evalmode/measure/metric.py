"""What a metric is: one value per sample, and how the values of all samples become one figure."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from evalmode.errors import BatchError

__all__ = [
    "Aggregate",
    "Metric",
    "PerSample",
    "class_indices",
    "class_scores",
    "columns",
    "equal_length",
    "first_samples",
    "refuse_nan",
    "same_shape",
]

PerSample = Callable[[Tensor, Tensor], Tensor]
"""`(outputs, target) -> values`: one value for each of the N samples, each from its own sample alone."""


class Aggregate(enum.StrEnum):
    """How per-sample values become one figure; it also decides which interval is honest."""

    PROPORTION = "proportion"
    MEAN = "mean"
    ROOT_MEAN = "root mean"


@dataclass(frozen=True, slots=True)
class Metric:
    """A named figure over a test set.

    Shapes: `per_sample` takes outputs and target with N samples along axis 0 and gives a tensor of shape `(N,)`, of
    booleans for a proportion and of float64 otherwise. Samples are the only thing summed over, so that the figure does
    not depend on how the data was cut into batches.
    """

    name: str
    per_sample: PerSample
    aggregate: Aggregate = Aggregate.MEAN


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
