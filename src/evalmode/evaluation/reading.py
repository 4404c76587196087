"""What is kept of a group that has run: its rows for every metric, its answers and targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalmode.errors import BatchError, EvalmodeError, TaskError
from evalmode.evaluation.answers import Answered, answered
from evalmode.evaluation.choice import (
    Chosen,
    MetricFunction,
    chosen_loss,
    ignored_places,
    inferred_metrics,
    refuse_equal_names,
)
from evalmode.evaluation.outputs import as_tensor, is_listed
from evalmode.evaluation.untouched import Untouched
from evalmode.measure.metric import Aggregate
from evalmode.observe.tree import describe, map_leaves

__all__ = ["Reader", "Reading", "row_alone", "rows_again"]

Values = NDArray[Any]
_KEPT_VALUES = 64  # of a sample's target or answer: more, as of a mask, is not kept


@dataclass(frozen=True, slots=True)
class Reading:
    """What is kept of some samples: what each metric reads of them, their targets, answers, scores and confidence.

    `confidence` is `(N, 2)` as in `Chunk`.
    """

    rows: dict[str, Values]
    target: Values | None
    prediction: Values | None
    scores: Values | None
    confidence: Values | None


class Reader:
    """Reads outputs beside targets. The first group decides what was not stated, and `said` says it in words.

    A group is always read whole, filling included: a metric's own kernels may round otherwise for another number of
    rows. With `keep_scores` the tensor that answers is kept of each sample.
    """

    def __init__(
        self,
        prediction: Callable[[Any], Any] | None,
        metrics: tuple[Chosen, ...] | None,
        loss: MetricFunction | None,
        *,
        keep_scores: bool = False,
    ) -> None:
        self.metrics, self.keep_scores = metrics, keep_scores
        self.chosen: tuple[Chosen, ...] | None = None
        self.masks_are_known = False
        self.said: dict[str, None] = {}  # an ordered set
        self.prediction = (
            prediction if prediction is None else Untouched(prediction, "prediction", self.say, shared=True)
        )
        if callable(loss) and not isinstance(loss, type):
            loss = Untouched(loss, "loss", self.say, shared=True)
        self.loss = loss

    def read(self, outputs: Any, target: Any, count: int, size: int) -> Reading:
        """What the first `count` of the `size` rows of a group give.

        Raises:
            TaskError: the task's functions do not fit, or a metric fails.
            BatchError: outputs are not finite, or do not fit the target.
            RowCountError: outputs or target have another number of rows.
        """
        with torch.no_grad():
            batch, said = answered(outputs, target, prediction=self.prediction, samples=size)
            self.say(said)
            if self.chosen is None:
                self.chosen = self._choose(batch, count)
            if not self.masks_are_known:
                said, self.masks_are_known = ignored_places(batch, self.chosen)
                self.say(said)
            rows = {chosen.name: _rows(chosen, batch, count) for chosen in self.chosen}
            answers = predictions(batch, self.chosen)
            scores = batch.scores if batch.scores is not None and batch.scores.ndim else None
            return Reading(
                rows,
                _kept(batch.target_tensor, batch.size, count, whole=self.keep_scores),
                _kept(answers, batch.size, count, whole=self.keep_scores),
                _numpy(scores, count)
                if self.keep_scores and scores is not None and len(scores) == batch.size
                else None,
                _confidence(batch, count),
            )

    def readable(self, outputs: Any, target: Any, size: int) -> bool:
        """Whether there are finite outputs that fit the target; what is measured of them is not asked."""
        try:
            with torch.no_grad():
                answered(outputs, target, prediction=self.prediction, samples=size)
        except EvalmodeError:
            return False
        return True

    def decide(self, outputs: Any, target: Any, count: int, size: int) -> None:
        """Settle by this group what was not stated, without reading it; arguments as in `read`.

        Raises:
            TaskError, BatchError: as `read`.
        """
        with torch.no_grad():
            batch, said = answered(outputs, target, prediction=self.prediction, samples=size)
            self.say(said)
            if self.chosen is None:
                self.chosen = self._choose(batch, count)

    @property
    def first_is_rooted(self) -> bool:
        """Whether the first metric is the root of a mean of what is read of the samples."""
        first = self.chosen[0].metric if self.chosen else None
        return first is not None and first.aggregate is Aggregate.ROOT_MEAN

    def say(self, *lines: str) -> None:
        """Keep what was inferred, once."""
        self.said.update(dict.fromkeys(line for line in lines if line))

    def _choose(self, batch: Answered, count: int) -> tuple[Chosen, ...]:
        chosen = self.metrics
        if chosen is None:
            chosen, said = inferred_metrics(batch)
            self.say(said)
        if self.loss is not None and batch.target is not None:
            loss, said = chosen_loss(self.loss, batch, count)
            self.say(said)
            chosen = (*chosen, loss)
        refuse_equal_names([metric.name for metric in chosen])
        return chosen


def row_alone(tree: Any, row: int, size: int) -> Any:
    """A group of the same `size` that holds the sample of one row alone.

    Example:
        >>> row_alone(torch.arange(3), 1, 3).tolist()
        [1, 1, 1]
    """
    return rows_again(tree, [row], size)


def rows_again(tree: Any, rows: Sequence[int], size: int) -> Any:
    """A group of the same `size` that holds the samples of some rows, again and again.

    Example:
        >>> rows_again(torch.arange(4), [0, 2], 4).tolist()
        [0, 2, 0, 2]
    """
    held = [rows[place % len(rows)] for place in range(size)]
    if is_listed(tree, size):
        return [tree[row] for row in held]
    if isinstance(tree, dict) and any(is_listed(part, size) for part in tree.values()):
        return {name: rows_again(part, rows, size) for name, part in tree.items()}
    return map_leaves(
        lambda _, leaf: (
            leaf[held] if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim and len(leaf) == size else leaf
        ),
        tree,
    )


def predictions(batch: Answered, chosen: tuple[Chosen, ...]) -> Tensor | None:
    """One row per sample where it is clear what answers: what `prediction` gave, a class, or a regression's value."""
    if batch.predicted is not None:
        return batch.predicted
    if batch.scores is None:
        return None
    names = {metric.metric.name if metric.metric is not None else "" for metric in chosen}
    binary = [name for name in names if name.startswith("binary ")]
    if binary and batch.scores.numel() == batch.size:
        least = 0.5 if all("of probabilities" in name for name in binary) else 0.0
        return (batch.scores.reshape(batch.size) > least).long()
    target = batch.target_tensor
    labels = target is not None and not target.is_floating_point() and target.numel() == batch.size
    if (
        batch.scores.is_floating_point()
        and batch.scores.ndim == 2
        and batch.scores.shape[1] > 1
        and (labels or "accuracy" in names)
    ):
        return batch.scores.argmax(1)
    same = target is not None and target.numel() == batch.scores.numel()
    if batch.scores.ndim <= 2 and (same or "accuracy" in names or not batch.scores.is_floating_point()):
        return batch.scores
    return None


def _rows(chosen: Chosen, batch: Answered, count: int) -> Values:
    try:
        result = chosen.values(batch)
    except EvalmodeError:
        raise
    except Exception as error:
        raise TaskError(
            f"the metric {chosen.name!r} failed: {type(error).__name__}: {error}",
            expected="one value per sample from (outputs, target)",
            fix=f"call it by hand on outputs {describe(batch.outputs)} and target {describe(batch.target)}",
        ) from error
    return _checked(chosen, result, batch.size)[:count]


def _checked(chosen: Chosen, result: Any, size: int) -> Values:
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
    if chosen.metric is not None and chosen.metric.aggregate is Aggregate.PROPORTION:
        values = _yes_or_no(name, values)
    if values.dtype is torch.bool:
        return values.cpu().numpy().copy()
    numbers: Values = values.cpu().double().numpy().copy()
    if (bad := np.isnan(numbers.reshape(size, -1)).any(1)).any():
        raise BatchError(
            f"the metric {name!r} is NaN in {int(bad.sum())} of {size} samples of a batch",
            expected="a number for every sample",
            fix="leave samples without a value out in split(batch)",
        )
    return numbers


def _yes_or_no(name: str, values: Tensor) -> Tensor:
    """The rows of a proportion as booleans; those with NaN as they are, which is told of every metric alike."""
    if bool(values.isnan().any()):
        return values
    if not bool(((values == 0) | (values == 1)).all()):
        raise TaskError(
            f"the metric {name!r} is a proportion, and gave values other than 0 and 1",
            expected="for each sample whether it counts",
            fix="Aggregate.MEAN is that of shares and other numbers",
        )
    return values.bool()


def _kept(values: Tensor | None, size: int, count: int, *, whole: bool) -> Values | None:
    if values is None or not values.ndim or len(values) != size:
        return None
    if values[0].numel() > _KEPT_VALUES and not whole:
        return None
    return _numpy(values, count)


def _numpy(values: Tensor, count: int) -> Values:
    values = values.detach()[:count].cpu()
    if values.dtype in {torch.bfloat16, torch.float16}:
        values = values.float()
    kept: Values = values.numpy().copy()
    return kept


def _confidence(batch: Answered, count: int) -> Values | None:
    """The probability that a classifier gives to its answer, read both ways; None where outputs are no class scores."""
    scores = batch.scores
    if scores is None or scores.ndim != 2 or scores.shape[1] < 2 or not scores.is_floating_point():
        return None
    if batch.target_tensor is None or batch.target_tensor.is_floating_point():
        return None
    wide = scores.detach()[:count].cpu().double().numpy()
    largest = wide.max(1)
    with np.errstate(invalid="ignore"):
        probabilities = (wide.min(1) >= 0) & (np.abs(wide.sum(1) - 1) < 1e-2)
        of_logits = 1.0 / np.exp(wide - largest[:, None]).sum(1)
    return np.stack([np.where(probabilities, largest, np.nan), of_logits], 1)
