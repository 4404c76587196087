"""What is compared, brought into one form: results are taken, files are read, models are evaluated on the same data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from evalmode.errors import ComparisonError, UsageError
from evalmode.evaluation.evaluator import evaluate
from evalmode.evaluation.result import Evaluation
from evalmode.measure.catalog import is_listed, metric_named
from evalmode.measure.metric import Aggregate, Metric
from evalmode.predictor.artifact import load
from evalmode.predictor.artifact_file import MAGIC
from evalmode.predictor.protocol import Predictor
from evalmode.task import Task

__all__ = ["contestants", "known_proportions"]

_EXPECTED = "an Evaluation, the Parquet file of its predictions, or a model with data="


def contestants(
    given: Sequence[Any],
    data: object,
    names: Sequence[str] | None,
    options: Mapping[str, Any],
    metrics: Sequence[str | Metric] = (),
    groups: object = None,
) -> dict[str, Evaluation]:
    """Results by the label that is shown of each: the names that were given, or what the results are of.

    Parameters: `options` are those of `evaluate`, for what has to be evaluated first; `metrics` are what is asked for:
    they are measured, unless the options, or a task under their names, say which are, and where rows of a file bear the
    name of a `Metric` they are its own. `groups` is a column that is kept.

    Raises:
        ComparisonError: a model was given without data.
        UsageError: something else was given, or names that do not fit.
    """
    if names is not None and (len(names) != len(given) or len(set(names)) != len(names)):
        raise UsageError(f"names is {list(names)!r}", expected=f"{len(given)} different names", fix="leave names out")
    kept = {"groups": groups} if isinstance(groups, str) else {}
    results = [_knowing(_result(one, data, {**kept, **options}, metrics), metrics) for one in given]
    if options and not any(_is_model(one) for one in given):
        named = " and ".join(f"{name}=" for name in options)
        raise UsageError(
            f"{named} beside results that are evaluated already",
            expected="options of an evaluation where models are evaluated",
            fix=f"leave {named} out",
        )
    labels = list(names) if names is not None else _labels([_label(*pair) for pair in zip(given, results, strict=True)])
    return dict(zip(labels, results, strict=True))


def _knowing(result: Evaluation, metrics: Sequence[str | Metric]) -> Evaluation:
    """With the metrics that were given where the result has kept rows of their names, and cannot know what they are."""
    given = {one.name: one for one in metrics if isinstance(one, Metric)}
    unknown = {name: one for name, one in given.items() if name in result.samples.rows and name not in result.metrics}
    return replace(result, metrics={**result.metrics, **unknown}) if unknown else result


def known_proportions(given: Sequence[Any], data: object, metrics: Iterable[str | Metric]) -> tuple[str, ...]:
    """Which of the metrics are proportions, as far as that is known before models are evaluated."""
    if not all(map(_is_model, given)):  # a result may have kept a metric of its own under such a name
        return ()
    known = [one for one in metrics if _of_catalog([one], (*given, data))]
    found = [one if isinstance(one, Metric) else metric_named(one) for one in known]
    return tuple(metric.name for metric in found if metric.aggregate is Aggregate.PROPORTION)


def _is_model(given: object) -> bool:
    return isinstance(given, nn.Module | Predictor | Task) or _is_artifact(given)


def _is_artifact(given: object) -> bool:
    if not isinstance(given, str | os.PathLike):
        return False
    path = Path(given)
    if not path.is_file():
        return path.suffix == ".evalmode"
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _result(given: Any, data: object, options: Mapping[str, Any], metrics: Sequence[str | Metric]) -> Evaluation:
    if isinstance(given, Evaluation):
        return given
    if not _is_model(given):
        if isinstance(given, str | os.PathLike):
            return Evaluation.load(given)
        raise UsageError(f"compare got {_named(given)}", expected=_EXPECTED, fix="evalmode.compare(a, b)")
    if data is None and (not isinstance(given, Task) or given.test_data is None):
        raise ComparisonError(
            f"{_named(given)} was given without data to evaluate it on",
            expected=_EXPECTED,
            fix="evalmode.compare(model_a, model_b, data=data)",
        )
    asked = {"metrics": list(metrics)} if metrics and _of_catalog(metrics, (given, data)) else {}
    if isinstance(data, Task):
        options = {**_parts(data, given), **asked, **options}
        data = data.data("test_data")
    else:
        options = {**asked, **options}
    if isinstance(given, nn.Module | Predictor | Task):
        return evaluate(given, data, **options)
    predictor = load(given)
    try:
        return evaluate(predictor, data, **options)
    finally:
        predictor.close()


def _parts(task: Task, given: object) -> dict[str, Any]:
    """How the task of the data reads and judges it; how a model is called is its own affair where it has a way."""
    names = ["split", "prediction", "metrics", "loss"]
    if isinstance(given, nn.Module):
        names.append("forward")
    return {name: getattr(task, name) for name in names if getattr(task, name) is not None}


def _of_catalog(metrics: Sequence[str | Metric], tasks: Sequence[object]) -> bool:
    """Whether the metrics can be measured as they are: a name that is no task's own, or a metric itself."""
    own = {
        name for task in tasks if isinstance(task, Task) and isinstance(task.metrics, Mapping) for name in task.metrics
    }
    return all(isinstance(one, Metric) or (one not in own and is_listed(one)) for one in metrics)


def _named(given: object) -> str:
    return f"the class {given.__name__}" if isinstance(given, type) else f"{given!r:.40} ({type(given).__name__})"


def _label(given: object, result: Evaluation) -> str:
    if isinstance(given, str | os.PathLike):
        return Path(given).stem
    return result.subject or (type(given).__name__ if not isinstance(given, Evaluation) else "result")


def _labels(wanted: Sequence[str]) -> list[str]:
    """Labels of their own for each: those that occur twice are numbered.

    Example:
        >>> _labels(["net", "net", "other"])
        ['net (1)', 'net (2)', 'other']
    """
    labels = []
    for place, label in enumerate(wanted):
        twice = wanted.count(label) > 1
        labels.append(f"{label} ({wanted[: place + 1].count(label)})" if twice else label)
    return (
        labels if len(set(labels)) == len(labels) else [f"{label} ({place})" for place, label in enumerate(wanted, 1)]
    )
