"""From per-sample values to the figure that a certificate keeps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evalmode.certificate import MetricRecord
from evalmode.errors import UsageError
from evalmode.measure.exact import exact_mean
from evalmode.measure.intervals import Interval, mean_interval, proportion_interval
from evalmode.measure.metric import Aggregate

__all__ = ["metric_record"]


def metric_record(
    name: str, values: NDArray[np.bool_] | NDArray[np.float64], aggregate: Aggregate, confidence: float = 0.95
) -> MetricRecord:
    """One figure with its interval. The same samples give the same bits in any order and any batching.

    Shapes: values `(N,)`, booleans for a proportion.

    Raises:
        UsageError: there are no values, or `confidence` is not between 0 and 1.

    Example:
        >>> metric_record("accuracy", np.array([True, True, False, True]), Aggregate.PROPORTION).value
        0.75
    """
    if not values.size:
        raise UsageError(f"{name} of no samples", expected="at least one sample")
    if aggregate is Aggregate.PROPORTION:
        count = int(np.count_nonzero(values))
        value, interval = count / values.size, proportion_interval(count, values.size, confidence)
    else:
        count = None
        wide = values.astype(np.float64)
        value, interval = exact_mean(wide), mean_interval(wide, confidence)
        if aggregate is Aggregate.ROOT_MEAN:
            # The root is monotone and both BCa and percentile intervals follow monotone maps.
            value, interval = math.sqrt(value), _rooted(interval)
    return MetricRecord(
        name=name,
        value=value,
        low=interval.low,
        high=interval.high,
        confidence=confidence,
        method=interval.method,
        count=count,
        total=values.size,
    )


def _rooted(interval: Interval) -> Interval:
    if interval.low is None or interval.high is None:
        return interval
    return Interval(math.sqrt(max(0.0, interval.low)), math.sqrt(max(0.0, interval.high)), interval.method)
