"""One batch, answered: what metrics read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evalmode.errors import BatchError, TaskError
from evalmode.evaluation.called import called
from evalmode.evaluation.outputs import as_tensor, main_output, refuse_non_finite, rows_of, unreadable
from evalmode.observe.tree import describe

__all__ = ["Answered", "answered"]


@dataclass(frozen=True, slots=True)
class Answered:
    """The outputs of one batch beside its target.

    `outputs` and `target` are as the model and `split` gave them; `scores` is the tensor that the named metrics read
    (class scores, or values of a regression); `predicted` is what the task's `prediction` returned, or None.
    """

    outputs: Any
    target: Any
    size: int
    scores: Tensor | None
    predicted: Tensor | None
    target_tensor: Tensor | None


def answered(outputs: Any, target: Any, *, prediction: Callable[[Any], Any] | None) -> tuple[Answered, str]:
    """A batch ready to be measured, and in words what was inferred about its outputs.

    Raises:
        BatchError: outputs or target have no batch axis, differ in length, or are not finite.
        TaskError: `prediction` fails, or returned no tensor.
    """
    scores, said = main_output(outputs)
    predicted = None
    if prediction is not None:
        said = ""
        returned = called("prediction(outputs)", prediction, outputs)
        predicted = as_tensor(returned)
        if predicted is None:
            raise TaskError(
                f"prediction(outputs) returned {describe(returned)}",
                expected="a tensor with one row per sample",
                fix="return outputs.argmax(1)   # class indices, or scores, or values",
            )
        size = rows_of(predicted, what="prediction(outputs) returned")
        if predicted.is_floating_point():
            scores = predicted
        elif scores is not None and (not scores.ndim or len(scores) != size):
            scores = None
    elif scores is not None:
        size = rows_of(scores, what="the model gave")
    else:
        size = _length(target) or 0
    if not size:
        raise unreadable(outputs)
    if target is not None and _length(target) not in {size, None}:
        raise BatchError(
            f"{size} outputs ({describe(predicted if predicted is not None else outputs)}) "
            f"and {_length(target)} targets ({describe(target)})",
            expected="one output and one target per sample",
            fix="look at what split(batch) and prediction(outputs) return",
        )
    for values in (scores, predicted):
        if values is not None:
            refuse_non_finite(values)
    scores = None if scores is None else scores.detach()
    return Answered(outputs, target, size, scores, predicted, as_tensor(target)), said


def _length(target: Any) -> int | None:
    """The number of samples in a target; None where it cannot be told."""
    if (tensor := as_tensor(target)) is not None:
        return rows_of(tensor, what="the target is")
    return len(target) if isinstance(target, list | tuple) else None
