"""Bootstrap intervals of any figure, from its rows.

BCa where it can be simulated, the jackknife where there are too many samples for that, and in words why there is no
interval where none is honest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.measure.intervals import NO_SCIPY, RESAMPLES, Interval, check_confidence, has_scipy
from evalmode.measure.metric import Aggregate, Metric
from evalmode.measure.resampling import Cells, cells_of

__all__ = ["Simulated", "bca", "bootstrap_interval", "interval_of_cells", "simulated"]

WORK = 100_000_000
"""Numbers read for one interval: rows times their width times resamples."""

FEWEST_RESAMPLES = 1999
"""Below so many resamples the ends of BCa are too rough, and the jackknife takes over."""

JACKKNIFE_ROWS = 1000
"""Rows up to which each is left out in turn; beyond, they are left out in groups."""

GROUPS = 200
UNDEFINED_SHARE = 0.05
"""The share of resamples that may leave a figure undefined, as those without a positive sample leave AUROC."""

Figures = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]
"""`(rows, weights) -> figures`: rows (U, K), weights (R, U), figures (R,)."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """A figure, its resamples, and the figure without each unit (or group of units) with how many such there are."""

    value: float
    resamples: NDArray[np.float64]
    without: NDArray[np.float64]
    times: NDArray[np.int64]

    @property
    def undefined(self) -> float:
        """The share of resamples that leave the figure undefined."""
        return float(np.isnan(self.resamples).mean())


def bootstrap_interval(
    metric: Metric,
    rows: NDArray[Any],
    value: float,
    confidence: float = 0.95,
    clusters: NDArray[Any] | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """The bootstrap interval of a metric's figure `value` over its rows; whole clusters are drawn where they are given.

    Shapes: rows `(N,)` or `(N, K)`; clusters `(N,)`.

    Raises:
        UsageError: `confidence` is not between 0 and 1.

    Source: Efron, "Better bootstrap confidence intervals", J. Am. Stat. Assoc. 82 (1987); Field and Welsh,
    "Bootstrapping clustered data", J. R. Stat. Soc. B 69 (2007).
    """
    check_confidence(confidence)
    if not bool(np.isfinite(rows).all()) or not math.isfinite(value):
        return Interval(None, None, "no interval: not every value is finite")
    if clusters is not None and metric.statistic is None:
        return interval_of_cells(cells_of(*_sums(rows, clusters)), _ratio(metric.aggregate), confidence, seed=seed)
    return interval_of_cells(cells_of(rows, clusters), metric.resampled, confidence, seed=seed)


def interval_of_cells(cells: Cells, figures: Figures, confidence: float, *, seed: int = 0) -> Interval:
    """The interval of the figure that `figures` gives for every weighting of the cells."""
    grouped = cells.cluster is not None
    units = f"{cells.units} groups" if grouped else f"{cells.units} samples"
    if cells.units == 1:
        return Interval(None, None, "no interval: one group" if grouped else "no interval: one sample")
    if not has_scipy():
        return Interval(None, None, NO_SCIPY)
    if resamples_for(cells) < FEWEST_RESAMPLES:
        return _jackknife(cells, figures, confidence, seed)
    found = simulated(cells, figures, seed)
    if found.undefined > UNDEFINED_SHARE:
        share = 100 * found.undefined
        return Interval(None, None, f"no interval: {share:.0f} % of the resamples leave the figure undefined")
    defined = found.resamples[~np.isnan(found.resamples)]
    if defined.min() == defined.max():
        return Interval(None, None, f"no interval: every resample of the {units} gives the same figure")
    name = f"cluster bootstrap of {units}" if grouped else "bootstrap"
    tails = bca(found, ((1 - confidence) / 2, (1 + confidence) / 2))
    if tails is not None:
        low, high = np.quantile(defined, tails)
        return Interval(float(low), float(high), f"BCa {name}")
    low, high = np.quantile(defined, ((1 - confidence) / 2, (1 + confidence) / 2))
    return Interval(float(low), float(high), f"percentile {name} (BCa is degenerate here)")


def simulated(cells: Cells, figures: Figures, seed: int = 0) -> Simulated:
    """The figure of the cells, its resamples and its jackknife."""
    number = resamples_for(cells)
    with np.errstate(all="ignore"):
        value = float(figures(cells.rows, cells.counts[None, :])[0])
        drawn = np.concatenate([figures(cells.rows, weights) for weights in cells.resamples(number, seed)])
        if len(cells.counts) <= JACKKNIFE_ROWS or cells.units <= JACKKNIFE_ROWS:
            parts = [(figures(cells.rows, weights), times) for weights, times in cells.without_one()]
            without, times = (np.concatenate(part) for part in zip(*parts, strict=True))
        else:
            without = np.concatenate([figures(cells.rows, part) for part in cells.without(JACKKNIFE_ROWS, seed)])
            times = np.ones(len(without), np.int64)
    return Simulated(value, drawn, without, times)


def bca(found: Simulated, tails: tuple[float, ...]) -> tuple[float, ...] | None:
    """The shares of the resamples at which the ends of a BCa interval lie; None where BCa is degenerate."""
    from scipy.stats import norm

    drawn = found.resamples[~np.isnan(found.resamples)]
    below = (np.count_nonzero(drawn < found.value) + np.count_nonzero(drawn <= found.value)) / 2
    bias = float(norm.ppf(below / len(drawn)))
    acceleration = _acceleration(found)
    if not math.isfinite(bias) or not math.isfinite(acceleration):
        return None
    shifts = [bias + float(norm.ppf(tail)) for tail in tails]
    if any(acceleration * shift >= 1 for shift in shifts):
        return None
    return tuple(float(norm.cdf(bias + shift / (1 - acceleration * shift))) for shift in shifts)


def resamples_for(cells: Cells) -> int:
    """How many resamples the work allows for; a function of the cells alone."""
    width = max(1, cells.rows[0].size)
    cost: int = max(len(cells.counts) * width, cells.units if cells.cluster is not None else 1)
    return max(1, min(RESAMPLES, WORK // cost))


def _acceleration(found: Simulated) -> float:
    known = ~np.isnan(found.without)
    without, times = found.without[known], found.times[known]
    if not len(without):
        return 0.0
    away = (without * times).sum() / times.sum() - without
    second = float((times * away**2).sum())
    return float((times * away**3).sum()) / (6 * second**1.5) if second > 0 else math.nan


def _jackknife(cells: Cells, figures: Figures, confidence: float, seed: int) -> Interval:
    """Student's interval from the figures without one of `GROUPS` parts.

    Source: Shao and Tu, "The Jackknife and Bootstrap" (1995), section 2.3.
    """
    from scipy.stats import t

    kinds = cells.units if cells.cluster is not None else len(cells.counts)
    groups = min(GROUPS, kinds)
    with np.errstate(all="ignore"):
        value = float(figures(cells.rows, cells.counts[None, :])[0])
        without = np.concatenate([figures(cells.rows, part) for part in cells.without(groups, seed)])
    error = math.sqrt((groups - 1) / groups * float(((without - without.mean()) ** 2).sum()))
    if not math.isfinite(error):
        return Interval(None, None, "no interval: leaving out a part leaves the figure undefined")
    if error == 0:
        return Interval(None, None, "no interval: leaving out any part gives the same figure")
    reach = float(t.ppf((1 + confidence) / 2, groups - 1)) * error
    name = f"jackknife of {groups} parts" + (f", {cells.units} groups" if cells.cluster is not None else "")
    return Interval(value - reach, value + reach, name)


def _sums(rows: NDArray[Any], clusters: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The sum and size of each cluster, `(G, 2)`, and its number; the same bits in any order of the rows."""
    _, cluster = np.unique(clusters, return_inverse=True)
    order = np.lexsort((rows, cluster))
    starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    sums = np.add.reduceat(rows[order].astype(np.float64), starts)
    sizes = np.diff(np.append(starts, len(rows))).astype(np.float64)
    return np.stack([sums, sizes], axis=1), np.arange(len(starts))


def _ratio(aggregate: Aggregate) -> Figures:
    def figures(rows: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
        sums = np.einsum("rn,nk->rk", weights.astype(np.float64), rows)
        means = np.asarray(sums[:, 0] / sums[:, 1], np.float64)
        return np.sqrt(means) if aggregate is Aggregate.ROOT_MEAN else means

    return figures
