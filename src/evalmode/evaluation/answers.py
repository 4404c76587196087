"""One batch, answered: what metrics read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evalmode.errors import RowCountError, TaskError
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


def answered(
    outputs: Any, target: Any, *, prediction: Callable[[Any], Any] | None, samples: int
) -> tuple[Answered, str]:
    """A batch of so many `samples` ready to be measured, and in words what was inferred about its outputs.

    Raises:
        RowCountError: outputs or target have another number of rows.
        BatchError: outputs or target have no batch axis, or are not finite.
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
    if scores is not None or predicted is not None:
        _require_rows("outputs", size, predicted if predicted is not None else outputs, samples)
    if target is not None:
        _require_rows("targets", _length(target), target, samples)
    for values in (scores, predicted):
        if values is not None:
            refuse_non_finite(values)
    scores = None if scores is None else scores.detach()
    return Answered(outputs, target, size, scores, predicted, as_tensor(target)), said


def _require_rows(what: str, rows: int | None, part: Any, samples: int) -> None:
    if rows not in {samples, None}:
        raise RowCountError(
            f"{rows} {what} ({describe(part)}) for a batch of {samples} samples",
            expected="one row for each sample, in the order of the samples",
            fix="filter or multiply samples in the dataset, not in collate_fn, split(batch) or the model; exact=False "
            "runs the batches of a DataLoader as they come",
        )


def _length(target: Any) -> int | None:
    """The number of samples in a target; None where it cannot be told."""
    if (tensor := as_tensor(target)) is not None:
        return rows_of(tensor, what="the target is")
    return len(target) if isinstance(target, list | tuple) else None
