"""The user's data for the tolerance `task`: what the plain model answers on them, and what a candidate does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evalmode.errors import BatchError, EvalmodeError, UsageError
from evalmode.measure.catalog import METRICS, metric_named
from evalmode.measure.metric import Aggregate, Metric
from evalmode.observe.batching import find_batch_axis
from evalmode.observe.tree import describe, map_tensors, tensor_leaves
from evalmode.optimization.task_margin import LEFT_OUT, Answers, Figure, decisions_of, demand_data

__all__ = ["TaskData", "metric_of_outputs", "task_data"]

_MOST_SAMPLES = 4096
_IGNORED = -100  # as a target: torch.nn.functional.cross_entropy leaves it out


@dataclass(frozen=True)
class _OfOutputs:
    """A function of all that the model gives, as `evaluate` calls it; a metric of the catalog reads one tensor."""

    function: Callable[[Any, Tensor], Any]

    def __call__(self, outputs: Any, target: Tensor) -> Any:
        return self.function(outputs, target)


@dataclass(frozen=True)
class TaskData:
    """Batches of (inputs, target), a metric for each sample, and the answers of the plain model.

    `note` says where the time did for the first samples alone; it is empty where all were answered.
    """

    batches: tuple[tuple[Any, Tensor | None], ...]
    metrics: tuple[Metric, ...]
    plain: Answers
    note: str = ""

    @property
    def count(self) -> int:
        """How many samples they are."""
        return sum(_samples(inputs, target) for inputs, target in self.batches)

    def answers(self, predict: Callable[[Any], Any], refuted: Callable[[Tensor], str] | None = None) -> Answers:
        """What `predict` answers on the data; to its end, unless `refuted` says of a batch's decisions why not."""
        return _answers(predict, self.batches, self.metrics, refuted)


def task_data(
    data: Any,
    metric: Any,
    plain: Callable[[Any], Any],
    *,
    seconds: float = math.inf,
    least: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> TaskData:
    """The user's data, read, with the answers of the plain model: as many batches as it answers in so many `seconds`,
    and at least as many samples as the bounds need (`least`).

    `data` is a pair (inputs, target) or an iterable of such pairs; a target may be None where there is no `metric`.
    `metric` is a name, a `Metric`, or a function of (outputs, target) that gives a number for each sample.

    Raises:
        UsageError: there are no data, or they are no pairs.
    """
    demand_data(data)
    batches = tuple(_pairs(data))
    if not batches:
        raise UsageError("the data for tolerance 'task' hold no batch", expected="at least one pair (inputs, target)")
    metrics = () if metric is None else (_metric(metric),)
    begin, done = clock(), 0
    used: list[tuple[Any, Tensor | None]] = []

    def affordable() -> Iterable[tuple[Any, Tensor | None]]:
        nonlocal done
        for batch in batches:
            if used and done >= least and clock() - begin > seconds:
                return
            used.append(batch)
            done += _samples(*batch)
            yield batch

    answers = _answers(plain, affordable(), metrics)
    told = f"tolerance task: the first {done} samples of the data, as time allows" if len(used) < len(batches) else ""
    return TaskData(tuple(used), metrics, answers, told)


def _pairs(data: Any) -> Iterable[tuple[Any, Tensor | None]]:
    if _is_pair(data) and isinstance(data[1], Tensor | None):
        inputs, target = data
        length = _samples(inputs, target)
        for start in range(0, min(length, _MOST_SAMPLES), 64):
            rows = slice(start, min(start + 64, length, _MOST_SAMPLES))
            cut = map_tensors(lambda tensor, rows=rows: tensor[rows], inputs)  # type: ignore[misc]
            yield cut, None if target is None else target[rows]
        return
    if not isinstance(data, Iterable):
        raise UsageError(
            f"the data for tolerance 'task' are {describe(data)}",
            expected="a pair (inputs, target), or an iterable of such pairs",
        )
    count = 0
    for batch in data:
        if not _is_pair(batch) or not isinstance(batch[1], Tensor | None):
            raise UsageError(
                f"a batch of the data for tolerance 'task' is {describe(batch)}",
                expected="a pair (inputs, target), whose target is a tensor or None",
            )
        count += _samples(*batch)
        yield batch[0], batch[1]
        if count >= _MOST_SAMPLES:
            return


def _samples(inputs: Any, target: Tensor | None) -> int:
    """How many samples a pair holds."""
    axis = find_batch_axis(inputs)
    tensors = [leaf for _, leaf in tensor_leaves(inputs) if leaf.dim()]
    if not tensors or (target is not None and not target.dim()):
        raise UsageError(
            f"a pair of the data for tolerance 'task' is {describe((inputs, target))}",
            expected="tensors whose first axis counts samples",
        )
    count = len(tensors[0]) if isinstance(axis, str) else axis.size
    if target is not None and len(target) != count and not isinstance(axis, str):
        raise UsageError(
            f"the data for tolerance 'task' have {count} samples and {len(target)} targets",
            expected="a target for each sample",
        )
    return count


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _metric(metric: Any) -> Metric:
    if isinstance(metric, str):
        metric = metric_named(metric)
    if isinstance(metric, Metric):
        if metric.statistic is not None:
            raise UsageError(
                f"tolerance 'task' was asked for with {metric.name}, a figure of all samples together",
                expected="a metric that has a value for each sample",
                fix="metric='accuracy', 'log loss' or 'mean absolute error'",
            )
        return metric
    if callable(metric) and not hasattr(metric, "compute"):
        return metric_of_outputs(metric, getattr(metric, "__name__", "metric"))
    raise UsageError(
        f"metric is {metric!r}"[:200],
        expected=f"a function of (outputs, target) that gives a number for each sample, or {', '.join(METRICS)}",
        fix="metric='accuracy'",
    )


def metric_of_outputs(function: Callable[[Any, Tensor], Any], name: str) -> Metric:
    """A metric from a function of (outputs, target) that gives a number for each sample."""
    return Metric(name, _OfOutputs(function), Aggregate.MEAN)


def _answers(
    predict: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Tensor | None]],
    metrics: tuple[Metric, ...],
    refuted: Callable[[Tensor], str] | None = None,
) -> Answers:
    decisions: list[Tensor] = []
    values: dict[str, list[Tensor]] = {metric.name: [] for metric in metrics}
    others: dict[str, Tensor] = {}
    decided = True
    for number, (inputs, target) in enumerate(batches):
        with torch.no_grad():
            given = predict(inputs)
            main = _main(given)
            outputs = main.cpu()
        if not number:
            others = {path: leaf.cpu() for path, leaf in tensor_leaves(given) if leaf is not main}
        found = decisions_of(outputs)
        decided = decided and found is not None
        if found is not None:
            decisions.append(_counted(found, target))
            if refuted is not None and decided and (why := refuted(decisions[-1])):
                return Answers(None, {}, {}, why)
        for metric in metrics:
            if target is None:
                raise UsageError(f"{metric.name} needs a target, and the data have none", expected="(inputs, target)")
            read = map_tensors(Tensor.cpu, given) if isinstance(metric.per_sample, _OfOutputs) else outputs
            values[metric.name].append(_values(metric, read, target, len(outputs)))
    figures = {
        metric.name: Figure(torch.cat(values[metric.name]).cpu().numpy(), metric.aggregate, metric.higher_is_better)
        for metric in metrics
    }
    return Answers(_of_one_length(decisions) if decided and decisions else None, figures, others)


def _values(metric: Metric, outputs: Any, target: Tensor, samples: int) -> Tensor:
    """What a metric gives for each sample of a batch."""
    try:
        found = torch.as_tensor(metric.per_sample(outputs, target))
    except EvalmodeError:
        raise
    except Exception as error:
        raise UsageError(
            f"the metric {metric.name} failed: {type(error).__name__}: {error}",
            expected="a number for each sample from (outputs, target)",
            fix=f"call it by hand on outputs {describe(outputs)} and target {describe(target)}",
        ) from error
    if found.shape != (samples,):
        raise UsageError(
            f"the metric {metric.name} gave {describe(found)} for a batch of {samples}",
            expected="a number for each sample",
            fix="torch.nn.functional.cross_entropy(outputs, target, reduction='none')",
        )
    return found


def _counted(decisions: Tensor, target: Tensor | None) -> Tensor:
    """Decisions without those that the target ignores."""
    if target is None or target.shape != decisions.shape or target.is_floating_point():
        return decisions
    ignored = target.cpu() == _IGNORED
    return decisions.long().masked_fill(ignored, LEFT_OUT) if bool(ignored.any()) else decisions


def _of_one_length(decisions: list[Tensor]) -> Tensor:
    """Those of batches of different lengths beside each other, filled up with what does not count."""
    shapes = {each.shape[1:] for each in decisions}
    if len(shapes) == 1:
        return torch.cat(decisions)
    longest = [max(lengths) for lengths in zip(*shapes, strict=True)]
    filled = []
    for each in decisions:
        whole = torch.full((len(each), *longest), LEFT_OUT)
        whole[tuple(slice(length) for length in each.shape)] = each.long()
        filled.append(whole)
    return torch.cat(filled)


def _main(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    tensors = [leaf for _, leaf in tensor_leaves(outputs)]
    if not tensors:
        raise BatchError(f"the outputs hold no tensor: {describe(outputs)}", expected="scores, or whole numbers")
    return tensors[0]
