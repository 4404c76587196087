"""Masks: which class each place of a sample was answered with, counted by class and sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalmode.errors import BatchError
from evalmode.measure.metric import equal_length, first_samples, refuse_nan

__all__ = ["IGNORED", "Overlaps", "mean_of_ratios", "overlaps"]

IGNORED = (-100, 255)
"""Targets that are left out: torch's own index, and that of many segmentation data sets (where classes are fewer)."""


@dataclass(frozen=True, slots=True)
class Overlaps:
    """How many places of each sample hold each class: in answer and target, in the answer, in the target.

    Shapes: each `(N, C)` float64, whole numbers.
    """

    both: NDArray[np.float64]
    answered: NDArray[np.float64]
    wanted: NDArray[np.float64]


def overlaps(outputs: Tensor, target: Tensor, *, metric: str, classes: int | None = None) -> Overlaps:
    """The overlaps of answers with targets; places whose target is ignored count nowhere.

    Shapes: target `(N, ...)` class indices; outputs `(N, C, ...)` scores, or of the target's shape: a logit per place
    (two classes, class 1 above 0) or class indices (of `classes`, two where it is None).

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score is NaN.
    """
    equal_length(outputs, target, metric=metric)
    outputs, target = outputs.detach().cpu(), target.detach().cpu()
    if target.ndim > 2 and target.shape[1] == 1:
        target = target[:, 0]
    refuse_nan(outputs, metric=metric, what="scores")
    if target.ndim < 2 or target.is_complex() or outputs.is_complex():
        raise BatchError(
            f"{metric}: the target has shape {tuple(target.shape)}",
            expected="a class index for every place, shape (N, ...)",
            fix="for one class per sample use metrics = ['accuracy', 'macro F1']",
        )
    answers, number = _answers(outputs, tuple(target.shape), metric, classes)
    if target.is_floating_point() and bool((target != target.trunc()).any()):
        raise BatchError(f"{metric}: the target holds numbers that are not whole", expected="class indices")
    wanted = target.long()
    ignored = wanted == IGNORED[0]
    if number <= IGNORED[1]:
        ignored |= wanted == IGNORED[1]
    for what, values in (("target", wanted), ("answer", answers)):
        bad = ((values < 0) | (values >= number)) & ~ignored
        if bool(bad.any()):
            most = int(values[bad].max())
            named = metric.startswith(("mean IoU", "Dice")) and most >= number and not outputs.is_floating_point()
            raise BatchError(
                f"{metric}: the class of the {what} is {int(values[bad][0])} in {first_samples(bad)}",
                expected=f"class indices from 0 to {number - 1}, or {IGNORED[0]} or {IGNORED[1]} for places to ignore",
                fix=f"metrics = ['{metric.partition(' of ')[0]} of {most + 1} classes']" if named else None,
            )
    return _counted(answers, wanted, ~ignored, number)


def mean_of_ratios(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over classes of the ratios of the first half of the columns to the second, where that is not 0.

    Shapes: `(R, 2 C)`, gives `(R,)`; NaN where every class is absent.

    Example:
        >>> mean_of_ratios(np.array([[1.0, 0.0, 2.0, 0.0]])).tolist()
        [0.5]
    """
    above, below = np.split(sums, 2, axis=1)
    ratios = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return np.asarray(ratios.sum(1) / (below > 0).sum(1), np.float64)


def _answers(outputs: Tensor, places: tuple[int, ...], metric: str, classes: int | None) -> tuple[Tensor, int]:
    """The class that each place was answered with, and how many classes there are."""
    shape = tuple(outputs.shape)
    one_each = shape == places or (shape[1:2] == (1,) and (shape[0], *shape[2:]) == places)
    if one_each:
        answers = outputs.reshape(places)
        if outputs.is_floating_point():
            return (answers > 0).long(), 2
        return answers.long(), classes or 2
    if outputs.is_floating_point() and len(shape) >= 3 and shape[1] >= 2 and (shape[0], *shape[2:]) == places:
        if classes not in {None, shape[1]}:
            raise BatchError(f"{metric}: scores of {shape[1]} classes", expected=f"scores of {classes} classes")
        return outputs.argmax(1), shape[1]
    raise BatchError(
        f"{metric}: outputs of shape {shape} and dtype {outputs.dtype} against a target of shape {places}",
        expected="class scores of shape (N, C, ...), or class indices of the target's shape (N, ...)",
        fix="make them meet in prediction(outputs) or split(batch); shapes are never broadcast",
    )


def _counted(answers: Tensor, wanted: Tensor, kept: Tensor, classes: int) -> Overlaps:
    samples = len(wanted)
    offset = (torch.arange(samples) * classes).reshape(samples, *(1,) * (wanted.ndim - 1)).expand(wanted.shape)[kept]
    answer, want = answers[kept], wanted[kept]

    def tally(values: Tensor) -> NDArray[np.float64]:
        counts = torch.bincount(values, minlength=samples * classes)
        return counts.reshape(samples, classes).double().numpy()

    same = answer == want
    return Overlaps(tally(offset[same] + want[same]), tally(offset + answer), tally(offset + want))
