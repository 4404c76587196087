"""Which metrics the rows of a file are of: found in the catalog by name, or made anew from the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
from numpy.typing import NDArray

from evalmode.certificate import EvaluationRecord
from evalmode.errors import TaskError, UsageError
from evalmode.measure.catalog import metric_named
from evalmode.measure.metric import Aggregate, Metric, metric_of

__all__ = ["KeptMetric", "known_metrics"]


class KeptMetric(msgspec.Struct, frozen=True):
    """What is kept of a metric beside its rows."""

    name: str
    aggregate: Aggregate
    higher_is_better: bool | None


def known_metrics(
    metrics: Iterable[KeptMetric], rows: Mapping[str, NDArray[Any]], record: EvaluationRecord
) -> dict[str, Metric]:
    """The metrics that can be known again, by name: those that give of the rows the figure that is recorded.

    Example:
        >>> import numpy as np
        >>> record = EvaluationRecord(samples=2, batch_size=2)
        >>> kept = [KeptMetric("loss", Aggregate.MEAN, False)]
        >>> known_metrics(kept, {"loss": np.array([1.0, 2.0])}, record)["loss"].figure(np.array([1.0, 2.0]))
        1.5
    """
    figures = {figure.name: figure.value for figure in record.metrics}
    known = {}
    for kept in metrics:
        if kept.name not in rows:
            continue
        metric = _listed(kept) or _of_rows(kept, rows[kept.name])
        if metric is not None and _gives(metric, rows[kept.name], figures.get(kept.name)):
            known[kept.name] = metric
    return known


def _listed(kept: KeptMetric) -> Metric | None:
    """The metric of the catalog that has this very name."""
    try:
        metric = metric_named(kept.name)
    except TaskError:
        return None
    return metric if metric.name == kept.name and metric.aggregate is kept.aggregate else None


def _of_rows(kept: KeptMetric, rows: NDArray[Any]) -> Metric | None:
    if kept.aggregate is Aggregate.STATISTIC or rows.ndim != 1:
        return None
    made = metric_of(kept.name, rows, higher_is_better=kept.higher_is_better)
    return replace(made, aggregate=kept.aggregate)


def _gives(metric: Metric, rows: NDArray[Any], figure: float | None) -> bool:
    """A user's own statistic may bear a name of the catalog: its rows give another figure there, or none."""
    if metric.statistic is None or figure is None:
        return True
    try:
        return metric.figure(rows) == figure
    except (UsageError, ValueError, IndexError):
        return False
