"""The evaluation loop: every sample once, one value per sample and metric, figures that do not depend on batching."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalmode.certificate import EvaluationRecord
from evalmode.errors import BatchError, TaskError, UsageError
from evalmode.evaluation.answers import Answered, answered
from evalmode.evaluation.batches import Batches
from evalmode.evaluation.choice import (
    Chosen,
    MetricChoice,
    MetricFunction,
    chosen_loss,
    chosen_metrics,
    inferred_metrics,
    refuse_equal_names,
)
from evalmode.evaluation.outputs import as_tensor
from evalmode.evaluation.split import Split, checked_split, default_split
from evalmode.measure.metric import metric_of
from evalmode.measure.summary import metric_record
from evalmode.observe.tree import describe

__all__ = ["LoopResult", "evaluate_batches"]

Values = NDArray[Any]  # booleans or float64


@dataclass(frozen=True, slots=True)
class LoopResult:
    """What the data gave.

    `inferred` says in words what was not stated by the task; `predictions` holds one row per sample (class indices, or
    values of a regression, or what the task's `prediction` returned), None where it is not clear what answers or where
    the rows differ in shape; `values` holds what each metric reads of each sample.

    Shapes: predictions `(samples, ...)`; each of `values` `(samples,)` or `(samples, K)`, booleans or float64.
    """

    record: EvaluationRecord
    inferred: tuple[str, ...]
    predictions: Tensor | None
    values: dict[str, Values]


def evaluate_batches(
    predict: Callable[[Any], Any],
    batches: Iterable[Any],
    *,
    split: Split | None = None,
    prediction: Callable[[Any], Any] | None = None,
    metrics: MetricChoice = None,
    loss: MetricFunction | None = None,
    confidence: float = 0.95,
    limit: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> LoopResult:
    """The figures of `predict` over all samples of `batches`, each with its interval.

    `predict(inputs)` gives the outputs of a batch: switching the model into evaluation mode is its business. `split`,
    `prediction`, `metrics` and `loss` are those of a task; functions among `metrics`, and `loss`, are called with the
    outputs as the model gave them and the target, and give one value per sample. `limit` counts samples: the batch that
    passes it runs whole, in its own shape, and only its first samples count. `on_progress(samples_so_far)` is called
    after each batch. Neither inputs nor outputs are kept.

    Shapes: outputs and targets have their samples along axis 0.

    Raises:
        TaskError: there are no batches, or `split`, `prediction`, `metrics` or `loss` do not fit.
        BatchError: outputs are not finite, have no batch axis, or do not fit the target.
        UsageError: `confidence` or `limit` is out of range.

    Example:
        >>> import torch
        >>> data = [(torch.eye(3), torch.tensor([0, 1, 1]))]
        >>> result = evaluate_batches(lambda inputs: 5 * inputs, data)
        >>> [f"{metric.name} {metric.value:.3f}" for metric in result.record.metrics]
        ['accuracy 0.667', 'log loss 1.680']
    """
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}", expected="a number between 0 and 1", fix="confidence=0.95")
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}", expected="at least 1 sample")
    started = time.perf_counter()
    tally = _Tally(prediction, chosen_metrics(metrics), loss)
    if isinstance(batches, Batches):
        tally.say(*batches.notes)
    for batch in batches:
        if split is None:
            inputs, target, said = default_split(batch)
            tally.say(said)
        else:
            inputs, target = checked_split(split, batch)
        tally.add(predict(inputs), target, limit)
        if on_progress is not None:
            on_progress(tally.samples)
        if tally.samples == limit:
            break
    return tally.result(confidence, started)


class _Tally:
    """What is kept of the batches so far: values and predictions per sample, and what was inferred."""

    def __init__(
        self, prediction: Callable[[Any], Any] | None, metrics: tuple[Chosen, ...] | None, loss: MetricFunction | None
    ) -> None:
        self.prediction = prediction
        self.metrics = metrics
        self.loss = loss
        self.chosen: tuple[Chosen, ...] | None = None
        self.said: dict[str, None] = {}  # an ordered set
        self.samples = 0
        self.largest = 0
        self.values: list[list[Values]] = []
        self.predictions: list[Tensor | None] = []

    def say(self, *lines: str) -> None:
        self.said.update(dict.fromkeys(line for line in lines if line))

    def add(self, outputs: Any, target: Any, limit: int | None) -> None:
        counted = None if limit is None else limit - self.samples
        with torch.no_grad():
            batch, said = answered(outputs, target, prediction=self.prediction)
            self.say(said)
            if self.chosen is None:
                self.chosen = self._choose(batch)
                self.values = [[] for _ in self.chosen]
            for chosen, kept in zip(self.chosen, self.values, strict=True):
                kept.append(_checked(chosen, chosen.values(batch), batch.size, self.samples)[:counted])
            answers = _predictions(batch, self.chosen)
        self.predictions.append(None if answers is None else answers[:counted].cpu().clone())
        self.largest = max(self.largest, batch.size)
        self.samples += batch.size if counted is None else min(batch.size, counted)

    def result(self, confidence: float, started: float) -> LoopResult:
        if self.chosen is None:
            raise TaskError(
                "the test data gave no batches",
                expected="at least one sample",
                fix="look at what test_data() returns; an iterator can be read only once",
            )
        values: dict[str, Values] = {
            chosen.name: np.concatenate(kept) for chosen, kept in zip(self.chosen, self.values, strict=True)
        }
        records = tuple(
            metric_record(chosen.metric or metric_of(name, values[name]), values[name], confidence)
            for name, chosen in zip(values, self.chosen, strict=True)
        )
        record = EvaluationRecord(
            samples=self.samples,
            batch_size=self.largest,
            metrics=records,
            seconds=time.perf_counter() - started,
        )
        return LoopResult(record, tuple(self.said), _joined(self.predictions), values)

    def _choose(self, batch: Answered) -> tuple[Chosen, ...]:
        chosen = self.metrics
        if chosen is None:
            chosen, said = inferred_metrics(batch)
            self.say(said)
        if self.loss is not None and batch.target is not None:
            loss, said = chosen_loss(self.loss, batch)
            self.say(said)
            chosen = (*chosen, loss)
        refuse_equal_names([metric.name for metric in chosen])
        return chosen


def _checked(chosen: Chosen, result: Any, size: int, first: int) -> Values:
    """One metric's rows of a batch as booleans or float64.

    Raises:
        TaskError: the metric did not give one value per sample, or one row where it is a statistic.
        BatchError: a value is NaN.
    """
    name, values = chosen.name, as_tensor(result)
    axes = 1 if chosen.metric is None or chosen.metric.statistic is None else 2
    if values is None or values.is_complex() or values.ndim != axes or len(values) != size:
        raise TaskError(
            f"the metric {name!r} gave {describe(result)} for a batch of {size}",
            expected=f"one value per sample: a tensor of shape ({size},)",
            fix="e.g. torch.nn.functional.cross_entropy(outputs, target, reduction='none'), or .flatten(1).mean(1)",
        )
    if values.dtype is torch.bool:
        return values.cpu().numpy().copy()
    numbers: Values = values.cpu().double().numpy().copy()
    if (bad := np.isnan(numbers.reshape(size, -1)).any(1)).any():
        raise BatchError(
            f"the metric {name!r} is NaN in {int(bad.sum())} of {size} samples of a batch, "
            f"the first is sample {first + int(bad.argmax())} of the data",
            expected="a number for every sample",
            fix="leave samples without a value out in split(batch)",
        )
    return numbers


def _predictions(batch: Answered, chosen: tuple[Chosen, ...]) -> Tensor | None:
    """One row per sample where it is clear what answers: what `prediction` gave, a class, or a regression's value."""
    if batch.predicted is not None:
        return batch.predicted
    names = {metric.name for metric in chosen}
    if batch.scores is None:
        return None
    if "accuracy" in names and batch.scores.is_floating_point():
        return batch.scores.argmax(1)
    if "binary accuracy" in names:
        return (batch.scores.reshape(batch.size) > 0).long()
    if names & {"accuracy", "mean absolute error", "root mean squared error"} and batch.scores.ndim <= 2:
        return batch.scores
    return None


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    alike = {(part.dtype, part.shape[1:]) for part in tensors}
    return torch.cat(tensors) if len(tensors) == len(parts) and len(alike) == 1 else None
