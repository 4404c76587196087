"""Metrics of torchmetrics: updated in sample order, in chunks of one size, from what was kept of every sample.

torchmetrics gives other bits for other batchings. Here the batching is always the same one, so the bits are too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from evalmode.certificate import MetricRecord
from evalmode.errors import TaskError
from evalmode.evaluation.samples import Samples

__all__ = ["apart", "is_torchmetrics", "records"]

CHUNK = 1024  # samples of one update


def is_torchmetrics(metric: object) -> bool:
    """Whether it is a metric, or a collection of metrics, of torchmetrics."""
    bases = type(metric).__mro__
    named = any(kind.__module__.partition(".")[0] == "torchmetrics" for kind in bases)
    return named and hasattr(metric, "update") and hasattr(metric, "compute")


def apart(metrics: Any) -> tuple[Any, dict[str, Any]]:
    """The metrics without those of torchmetrics, and these by name.

    Example:
        >>> apart(["accuracy"])
        (['accuracy'], {})
    """
    if is_torchmetrics(metrics):
        return (), {_name(metrics): metrics}
    if isinstance(metrics, Mapping):
        found = {str(name): metric for name, metric in metrics.items() if is_torchmetrics(metric)}
        return {name: metric for name, metric in metrics.items() if str(name) not in found}, found
    if isinstance(metrics, Iterable) and not isinstance(metrics, str):
        listed = list(metrics)
        ours = [metric for metric in listed if is_torchmetrics(metric)]
        names = [_name(metric) for metric in ours]
        if len(set(names)) < len(names):
            raise TaskError(
                f"two metrics are called {max(names, key=names.count)!r}",
                expected="a name of its own for each",
                fix="metrics = {'first name': metric, 'second name': other_metric}",
            )
        return [metric for metric in listed if not is_torchmetrics(metric)], dict(zip(names, ours, strict=True))
    return metrics, {}


def records(metrics: Mapping[str, Any], samples: Samples, *, predicted: bool = False) -> tuple[MetricRecord, ...]:
    """The figures of metrics of torchmetrics; a copy is updated, so the user's own keeps its state.

    They read scores; where the task has a `prediction` (`predicted`), what that gave, unless a metric refuses it and
    there are scores: those of a ranking want no decisions.

    Raises:
        TaskError: nothing was kept that they could read, or one of them fails.
    """
    found: list[MetricRecord] = []
    for name, metric in metrics.items():
        both = (samples.prediction, samples.scores) if predicted else (samples.scores, samples.prediction)
        readable = [outputs for outputs in both if outputs is not None][: 2 if predicted else 1]
        if not readable or samples.target is None:
            raise TaskError(
                f"{name} cannot be computed: outputs or targets differ in shape from sample to sample",
                expected="one tensor of scores and one target of the same shape for each sample",
                fix="write it as a function (outputs, target) -> one value per sample",
            )
        target = torch.from_numpy(samples.target)
        try:
            found += _records(name, metric, torch.from_numpy(readable[0]), target)
        except TaskError:
            if len(readable) == 1:
                raise
            found += _records(name, metric, torch.from_numpy(readable[1]), target, ", of the scores")
    return tuple(found)


def _records(name: str, metric: Any, outputs: torch.Tensor, target: torch.Tensor, read: str = "") -> list[MetricRecord]:
    own = copy.deepcopy(metric).cpu()
    own.reset()
    try:
        for start in range(0, len(outputs), CHUNK):
            own.update(outputs[start : start + CHUNK], target[start : start + CHUNK])
        value = own.compute()
    except Exception as error:
        raise TaskError(
            f"the metric {name!r} failed: {type(error).__name__}: {error}",
            expected=f"it takes outputs of shape (N{''.join(f', {size}' for size in outputs.shape[1:])}) and targets "
            f"of shape (N{''.join(f', {size}' for size in target.shape[1:])})",
            fix="bring outputs into its form with prediction(outputs): it reads what that returns",
        ) from error
    return [_record(label, number, len(outputs), read) for label, number in _numbers(name, value)]


def _numbers(name: str, value: Any) -> list[tuple[str, float]]:
    if isinstance(value, Mapping):
        return [pair for key, part in value.items() for pair in _numbers(str(key), part)]
    if isinstance(value, tuple | list):
        return [pair for place, part in enumerate(value) for pair in _numbers(f"{name} {place}", part)]
    tensor = torch.as_tensor(value)
    if not tensor.ndim:
        return [(name, float(tensor))]
    if tensor.numel() > 1000:
        raise TaskError(f"the metric {name!r} gave {tuple(tensor.shape)} numbers", expected="at most 1,000")
    return [(f"{name} {place}", float(number)) for place, number in enumerate(tensor.reshape(-1).tolist())]


def _record(name: str, value: float, total: int, read: str) -> MetricRecord:
    return MetricRecord(name=name, value=value, method=f"no interval: a figure of torchmetrics{read}", total=total)


def _name(metric: Any) -> str:
    return type(metric).__name__
