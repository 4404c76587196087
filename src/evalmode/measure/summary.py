"""From the rows of a metric to the figure that a certificate keeps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.certificate import MetricRecord
from evalmode.errors import UsageError
from evalmode.measure.bootstrap import bootstrap_interval
from evalmode.measure.intervals import Interval, mean_interval, proportion_interval, within
from evalmode.measure.metric import Aggregate, Metric

__all__ = ["metric_record"]


def metric_record(
    metric: Metric, rows: NDArray[Any], confidence: float = 0.95, clusters: NDArray[Any] | None = None
) -> MetricRecord:
    """One figure with its interval. The same samples give the same bits in any order and any batching.

    `clusters` names the group of each sample, as the patient of an image: samples of a group are not independent, so
    groups are resampled instead of samples.

    Shapes: rows `(N,)` or `(N, K)` as `metric.per_sample` gives them; clusters `(N,)`.

    Raises:
        UsageError: there are no rows, they leave the figure undefined, `clusters` has another length, or `confidence`
            is not between 0 and 1.

    Example:
        >>> from evalmode.measure.accuracy import ACCURACY
        >>> metric_record(ACCURACY, np.array([True, True, False, True])).value
        0.75
    """
    value = metric.figure(rows)
    if clusters is not None and clusters.shape != (len(rows),):
        raise UsageError(
            f"{metric.name}: clusters of shape {clusters.shape} for {len(rows)} samples",
            expected="the group of each sample, shape (samples,)",
        )
    count = int(np.count_nonzero(rows)) if metric.aggregate is Aggregate.PROPORTION else None
    interval = within(_interval(metric, rows, value, confidence, clusters), *metric.range)
    caveat = f"; {metric.caveat}" if metric.caveat and interval.low is not None else ""
    return MetricRecord(
        name=metric.name,
        value=value,
        low=interval.low,
        high=interval.high,
        confidence=confidence,
        method=interval.method + caveat,
        count=count,
        total=len(rows),
    )


def _interval(
    metric: Metric, rows: NDArray[Any], value: float, confidence: float, clusters: NDArray[Any] | None
) -> Interval:
    if clusters is not None or metric.statistic is not None:
        return bootstrap_interval(metric, rows, value, confidence, clusters)
    if metric.aggregate is Aggregate.PROPORTION:
        return proportion_interval(int(np.count_nonzero(rows)), len(rows), confidence)
    interval = mean_interval(rows.astype(np.float64, copy=False), confidence)
    # The root is monotone and both BCa and percentile intervals follow monotone maps.
    return _rooted(interval) if metric.aggregate is Aggregate.ROOT_MEAN else interval


def _rooted(interval: Interval) -> Interval:
    if interval.low is None or interval.high is None:
        return interval
    return Interval(math.sqrt(max(0.0, interval.low)), math.sqrt(max(0.0, interval.high)), interval.method)
