"""Which figures to compute: those the task names, or those that its outputs and targets suggest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evalmode.errors import TaskError
from evalmode.evaluation.answers import Answered
from evalmode.evaluation.called import called
from evalmode.evaluation.outputs import is_listed, unreadable
from evalmode.evaluation.untouched import Untouched
from evalmode.measure.catalog import METRICS, metric_named
from evalmode.measure.metric import Metric
from evalmode.observe.tree import describe, map_tensors, tensor_leaves

__all__ = [
    "Chosen",
    "MetricChoice",
    "MetricFunction",
    "chosen_loss",
    "chosen_metrics",
    "ignored_places",
    "inferred_metrics",
    "refuse_equal_names",
]

_MASKS = {"mean IoU", "Dice", "binary IoU", "binary Dice"}  # whatever names they were given
_CLOSE = 1e-4  # of a loss: what fp32 rounds in a batch of thousands

MetricFunction = Callable[[Any, Any], Any]
MetricChoice = (
    str
    | MetricFunction
    | Metric
    | Mapping[str, str | Metric | MetricFunction]
    | Iterable[str | Metric | MetricFunction]
    | None
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A figure to compute: what it reads of each sample of an answered batch. Without `metric`, booleans are a
    proportion and numbers a mean."""

    name: str
    values: Callable[[Answered], Any]
    metric: Metric | None = None


def chosen_metrics(metrics: object, tell: Callable[[str], object]) -> tuple[Chosen, ...] | None:
    """The metrics that were asked for, by name or as functions; None where they are to be inferred.

    `tell` is told where one of them writes into its arguments.

    Raises:
        TaskError: an unknown name, something that is neither name nor function, or one name twice.
    """
    if metrics is None:
        return None
    if isinstance(metrics, str | Metric) or callable(metrics):
        metrics = (metrics,)
    if isinstance(metrics, Mapping):
        pairs = [(str(name), metric) for name, metric in metrics.items()]
    elif isinstance(metrics, Iterable):
        pairs = [(_name_of(metric), metric) for metric in metrics]
    else:
        raise _no_metric(metrics)
    refuse_equal_names([name for name, _ in pairs])
    return tuple(_chosen(name, metric, tell) for name, metric in pairs)


def refuse_equal_names(names: list[str]) -> None:
    """Raises `TaskError` where two figures would bear one name."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TaskError(
            f"two metrics are called {', '.join(map(repr, twice))}",
            expected="a name of its own for each",
            fix="metrics = {'first name': function, 'second name': other_function}",
        )


def chosen_loss(loss: object, batch: Answered, count: int) -> tuple[Chosen, str]:
    """A loss as a figure, and in words how it is taken. `batch` is the first batch, `count` how many rows are samples.

    A loss that gives one number per batch is called once per sample: a mean over batches would depend on how the data
    was cut.

    Raises:
        TaskError: it is no function, or it fails.
    """
    if not callable(loss) or isinstance(loss, type):
        raise TaskError(
            f"loss is {loss!r}",
            expected="a function (outputs, target)",
            fix="loss = torch.nn.functional.cross_entropy",
        )
    own = _own(batch, range(count), batch.size)
    result = called("loss(outputs, target)", loss, *own)
    if not isinstance(result, Tensor) or result.ndim:
        return Chosen("loss", lambda batch: loss(batch.outputs, _beside(batch))), ""

    _refuse_number_of_the_batch(loss, own)

    def one_by_one(batch: Answered) -> list[float]:
        return [float(loss(*_own(batch, range(row, row + 1), batch.size))) for row in range(batch.size)]

    said = "loss: it gives one number per batch, so it is called once per sample"
    alone = [float(loss(*_own(batch, range(row, row + 1), batch.size))) for row in range(count)]
    return Chosen("loss", one_by_one), said + _other_together(float(result), alone)


def _refuse_number_of_the_batch(loss: Callable[[Any, Any], Any], own: tuple[Any, Any]) -> None:
    """Refuse a loss that is a number which the model gives once for a batch: no sample has one of its own."""
    outputs, target = own
    if all(leaf.ndim for _, leaf in tensor_leaves(outputs)):
        return
    unknown = map_tensors(
        lambda leaf: torch.full_like(leaf, torch.nan) if leaf.ndim and leaf.is_floating_point() else leaf, outputs
    )
    try:
        alone = math.isfinite(float(loss(unknown, target)))  # a temperature beside the scores is no such number
    except Exception:  # noqa: BLE001 - a loss that refuses NaN reads them
        return
    if alone:
        raise TaskError(
            "loss(outputs, target) is a number that the model gives once for a whole batch",
            expected="a loss of each sample, from what the model gives for each of them",
            fix="loss = lambda outputs, target: F.cross_entropy(outputs['logits'], target, reduction='none'); for "
            "tokens metrics = ['token loss']",
        )


def ignored_places(batch: Answered, chosen: tuple[Chosen, ...]) -> tuple[str, bool]:
    """In words, that targets of 255 do not count, where a metric leaves them out, and whether it is settled that they
    are no mask of 0 and 255.

    Raises:
        TaskError: they are one: its foreground would count nowhere.
    """
    read = [(one.name, one.metric.statistic) for one in chosen if one.metric is not None]
    dense = [name for name, statistic in read if getattr(statistic, "name", "") in _MASKS]
    target, scores = batch.target_tensor, batch.scores
    if not dense or target is None:
        return "", True
    places = target[:, 0] if target.ndim > 2 and target.shape[1] == 1 else target
    classes = 2 if scores is None or scores.ndim <= places.ndim else scores.shape[1]
    if classes > 255:
        return "", True
    known = classes > 2 or bool((target == 1).any())
    if not bool((target == 255).any()):
        return "", known
    if not known and bool(((target == 0) | (target == 255)).all()):
        raise TaskError(
            f"{dense[0]}: so far the targets hold 0 and 255 alone, and 255 is a place that does not count",
            expected="class indices, 0 and 1 for two classes",
            fix="return inputs, mask // 255   # from split(batch); where 255 does not count, write -100 in its place",
        )
    return f"{' and '.join(dense)}: places whose target is 255 do not count", known


def _other_together(together: float, alone: list[float]) -> str:
    """What to add where a loss is not the mean of its samples' losses: class weights, ignored places, a sum."""
    mean = math.fsum(alone) / len(alone)
    scale = max(math.fsum(map(abs, alone)) / len(alone), abs(together))
    if not math.isfinite(mean - together) or abs(mean - together) <= _CLOSE * scale:
        return ""
    return (
        f"; the first {len(alone)} samples have {mean:.4g} that way and {together:.4g} together: in a batch it weighs "
        "samples or places otherwise, or sums them"
    )


def inferred_metrics(batch: Answered) -> tuple[tuple[Chosen, ...], str]:
    """The metrics that fit the first batch, and in words why.

    Raises:
        TaskError: no metric fits for sure; the message shows one to write.
    """
    if batch.target is None:
        return (), "metrics: none, as there is no target"
    if batch.target_tensor is None:
        raise _no_fit(batch, "the target is no tensor")
    if batch.scores is None and batch.predicted is None:
        raise unreadable(batch.outputs)
    names, why = _fitting(batch, batch.target_tensor)
    return tuple(_named(METRICS[name]) for name in names), f"metrics: {', '.join(names)} ({why})"


def _fitting(batch: Answered, target: Tensor) -> tuple[tuple[str, ...], str]:
    scores, labels = batch.scores, _holds_labels(target)
    if batch.predicted is not None and not batch.predicted.is_floating_point():
        if not labels or batch.predicted.ndim != 1:
            raise _no_fit(batch, "predictions are whole numbers, targets are not class indices")
        losses = _losses(scores, target)
        return ("accuracy", *losses), "the predictions are class indices"
    if scores is None:
        raise _no_fit(batch, "no scores")
    if not scores.is_floating_point():
        if labels and scores.ndim == 1:
            return ("accuracy",), "the outputs are class indices"
        raise _no_fit(batch, "whole numbers as outputs")
    if labels and scores.ndim == 2 and scores.shape[1] > 1:
        if _look_like_probabilities(scores):
            return ("accuracy",), "the outputs look like probabilities; their log loss is computed only if named"
        return ("accuracy", "log loss"), f"{scores.shape[1]} class scores per sample, taken as logits"
    if _one_each(scores) and _one_each(target) and _zero_or_one(target):
        if bool(((scores >= 0) & (scores <= 1)).all()):
            raise _no_fit(batch, "one score from 0 to 1 per sample may be a probability or a logit")
        return ("binary accuracy", "binary log loss"), "one score per sample, taken as a logit, and targets of 0 and 1"
    if dense := _dense(scores, target):
        return dense
    if scores.shape == target.shape or (_one_each(scores) and _one_each(target)):
        if scores.ndim > 1 and not _one_each(scores) and _zero_or_one(target):
            raise _no_fit(batch, "targets of 0 and 1 per output may be several labels or a distribution")
        return ("mean absolute error", "root mean squared error"), "outputs and targets of one shape: a regression"
    raise _no_fit(batch, "no named metric takes these shapes")


def _dense(scores: Tensor, target: Tensor) -> tuple[tuple[str, ...], str] | None:
    """Metrics of class scores at every place of a sample: of its tokens, or of its pixels."""
    if target.is_floating_point() or target.is_complex() or scores.ndim != target.ndim + 1 or target.ndim < 2:
        return None
    if scores.ndim == 3 and scores.shape[:2] == target.shape and scores.shape[2] > 1:
        return ("token accuracy", "token loss", "perplexity"), f"{scores.shape[2]} class scores for each token"
    if scores.shape[2:] == target.shape[1:] and scores.shape[1] > 1:
        return ("mean IoU", "Dice"), f"{scores.shape[1]} class scores for each place of a sample"
    return None


def _losses(scores: Tensor | None, target: Tensor) -> tuple[str, ...]:
    if scores is None or not scores.is_floating_point() or _look_like_probabilities(scores):
        return ()
    if scores.ndim == 2 and scores.shape[1] > 1:
        return ("log loss",)
    return ()


def _holds_labels(target: Tensor) -> bool:
    return not target.is_floating_point() and not target.is_complex() and _one_each(target)


def _one_each(values: Tensor) -> bool:
    return values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)


def _zero_or_one(target: Tensor) -> bool:
    return bool(((target == 0) | (target == 1)).all())


def _look_like_probabilities(scores: Tensor) -> bool:
    return scores.ndim == 2 and bool((scores >= 0).all() and ((scores.double().sum(1) - 1).abs() < 1e-2).all())


def _named(metric: Metric) -> Chosen:
    def values(batch: Answered) -> Tensor:
        scores, per_sample = batch.scores, metric.per_sample
        if metric.decides and batch.predicted is not None:
            per_sample = _of_as_many_classes(metric, scores, batch.predicted)
            scores = batch.predicted
        if scores is None:
            raise unreadable(batch.outputs)
        if batch.target_tensor is None:
            raise TaskError(
                f"{metric.name}: the target is {describe(batch.target)}",
                expected="a tensor",
                fix="return inputs, target   # from split(batch), target as a tensor",
            )
        return per_sample(scores, batch.target_tensor)

    return Chosen(metric.name, values, metric)


def _of_as_many_classes(metric: Metric, scores: Tensor | None, predicted: Tensor) -> Callable[[Tensor, Tensor], Any]:
    """What a metric reads of classes given for every place: the scores beside them tell how many there are."""
    known = scores is not None and scores.ndim == predicted.ndim + 1 and not predicted.is_floating_point()
    if metric.name in {"mean IoU", "Dice"} and known and scores is not None and scores.shape[1] > 1:
        return metric_named(f"{metric.name} of {scores.shape[1]} classes").per_sample
    return metric.per_sample


def _chosen(name: str, metric: object, tell: Callable[[str], object]) -> Chosen:
    said = f"the metric {name!r}"
    if isinstance(metric, str | Metric):
        known = metric_named(metric) if isinstance(metric, str) else metric
        if isinstance(metric, Metric):
            known = dataclasses.replace(known, per_sample=Untouched(known.per_sample, said, tell, shared=True))
        return Chosen(name, _named(known).values, dataclasses.replace(known, name=name))
    if not callable(metric) or isinstance(metric, type):
        raise _no_metric(metric)
    untouched = Untouched(metric, said, tell, shared=True)
    return Chosen(name, lambda batch: untouched(batch.outputs, _beside(batch)))


def _name_of(metric: object) -> str:
    if isinstance(metric, str):
        return metric_named(metric).name
    if isinstance(metric, Metric):
        return metric.name
    name = getattr(metric, "__name__", type(metric).__name__)
    return "metric" if name == "<lambda>" else str(name).replace("_", " ")


def _beside(batch: Answered) -> Any:
    """The target on the device of the outputs."""
    if batch.scores is None:
        return batch.target
    device = batch.scores.device
    return map_tensors(lambda tensor: tensor.to(device), batch.target)


def _own(batch: Answered, rows: range, size: int) -> tuple[Any, Any]:
    """Outputs and target of some samples, as a batch of their own."""
    target = _beside(batch)
    if isinstance(target, list | tuple) and len(target) == size:  # one entry for each sample, whatever it is
        return _rows(batch.outputs, rows, size), target[rows.start : rows.stop]
    return _rows(batch.outputs, rows, size), _rows(target, rows, size)


def _rows(part: Any, rows: range, size: int) -> Any:
    if is_listed(part, size):
        return part[rows.start : rows.stop]
    if isinstance(part, dict) and any(is_listed(inner, size) for inner in part.values()):
        return {name: _rows(inner, rows, size) for name, inner in part.items()}
    return map_tensors(lambda leaf: leaf[rows.start : rows.stop] if leaf.ndim and len(leaf) == size else leaf, part)


def _no_metric(metric: object) -> TaskError:
    return TaskError(
        f"a metric of type {type(metric).__name__}: {metric!r}",
        expected="a name, or a function (outputs, target) -> one value per sample",
        fix="metrics = ['accuracy', 'log loss']",
    )


def _no_fit(batch: Answered, why: str) -> TaskError:
    return TaskError(
        f"cannot tell which metrics fit outputs {describe(batch.outputs)} and target {describe(batch.target)}: {why}",
        expected="metrics in the task: names (" + ", ".join(METRICS) + ") or functions",
        fix="metrics = {'my metric': lambda outputs, target: (outputs.argmax(1) == target).flatten(1).float().mean(1)}"
        "   # one value per sample",
    )
