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

from evalmode.measure.intervals import (
    NO_SCIPY,
    RESAMPLES,
    Interval,
    check_confidence,
    has_scipy,
    narrowed,
    proportion_interval,
    widened,
)
from evalmode.measure.metric import Aggregate, Metric
from evalmode.measure.resampling import Cells, cells_of

__all__ = ["Figures", "Resampled", "Student", "Uncertainty", "bootstrap_interval", "ratio_of", "sums_of", "uncertainty"]

WORK = 100_000_000
"""Numbers read for the resamples of one interval: rows times their width times resamples."""

FEWEST_RESAMPLES = 1999
"""Below so many resamples the ends of BCa are too rough, and the jackknife takes over."""

JACKKNIFE_ROWS = 1000
"""Rows up to which each is left out in turn; beyond, they are left out in groups."""

GROUPS = (40, 200)
JACKKNIFE_WORK = 400_000_000
UNDEFINED_SHARE = 0.05
"""The share of resamples that may leave a figure undefined, as those without a positive sample leave AUROC."""

Figures = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]
"""`(rows, weights) -> figures`: rows (U, K), weights (R, U), figures (R,)."""


@dataclass(frozen=True, slots=True)
class Resampled:
    """What resampling `units` samples or groups says of a figure: the sorted resamples, with BCa's corrections for bias
    and skewness, and wider by as much as resamples of few units are too narrow."""

    drawn: NDArray[np.float64]
    bias: float
    acceleration: float
    units: int
    method: str

    def end(self, tail: float) -> float | None:
        """The bound below which the figure lies at that one-sided level; None where BCa has a pole."""
        from scipy.stats import norm

        shift = self.bias + widened(tail, self.units)
        if self.acceleration * shift >= 1:
            return None
        at = float(norm.cdf(self.bias + shift / (1 - self.acceleration * shift)))
        return float(np.quantile(self.drawn, at))

    def tail(self, at: float) -> float:
        """The one-sided level whose bound is `at`, the inverse of `end`; never 0 or 1, as resamples are finite."""
        from scipy.stats import norm

        below, upto = np.searchsorted(self.drawn, at, "left"), np.searchsorted(self.drawn, at, "right")
        least = 0.5 / len(self.drawn)
        share = min(max((below + upto) / 2 / len(self.drawn), least), 1 - least)
        shift = float(norm.ppf(share)) - self.bias
        if 1 + self.acceleration * shift <= 0:
            return least if shift < 0 else 1 - least
        return narrowed(shift / (1 + self.acceleration * shift) - self.bias, self.units)


@dataclass(frozen=True, slots=True)
class Student:
    """A figure with its standard error, and the degrees of freedom that the latter has."""

    value: float
    error: float
    freedom: int
    method: str

    def end(self, tail: float) -> float:
        """The bound below which the figure lies at that one-sided level."""
        from scipy.stats import t

        return self.value + float(t.ppf(tail, self.freedom)) * self.error

    def tail(self, at: float) -> float:
        """The one-sided level whose bound is `at`."""
        from scipy.stats import t

        return float(t.cdf((at - self.value) / self.error, self.freedom))


Uncertainty = Resampled | Student


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
    "Bootstrapping clustered data", J. R. Stat. Soc. B 69 (2007); for few units `intervals.widened`.
    """
    check_confidence(confidence)
    if not bool(np.isfinite(rows).all()) or not math.isfinite(value):
        return Interval(None, None, "no interval: not every value is finite")
    if not has_scipy():
        return Interval(None, None, NO_SCIPY)
    trials: tuple[int, ...] = ()
    if clusters is not None and metric.statistic is None:
        sums, numbers = sums_of(rows[:, None], clusters)
        found = uncertainty(cells_of(sums, numbers), ratio_of(metric.aggregate), seed=seed)
        if metric.aggregate is Aggregate.PROPORTION:
            trials = (len(sums),)
    else:
        found = uncertainty(cells_of(rows, clusters), metric.resampled, seed=seed)
        if metric.statistic is not None and clusters is None:
            trials = metric.statistic.trials(rows)
    if not isinstance(found, str):
        return _between(found, confidence)
    if value in {0.0, 1.0} and trials and len(rows) > 1:
        return _counted(trials, value, confidence, grouped=clusters is not None)
    return Interval(None, None, f"no interval: {found}")


def uncertainty(cells: Cells, figures: Figures, *, seed: int = 0) -> Uncertainty | str:
    """What resampling the cells says of the figure that `figures` gives for their weightings; in words, if nothing."""
    grouped = cells.cluster is not None
    units = f"{cells.units} groups" if grouped else f"{cells.units} samples"
    if cells.units == 1:
        return "one group" if grouped else "one sample"
    number = _resamples(cells)
    if number < FEWEST_RESAMPLES:
        return _jackknife(cells, figures, seed)
    with np.errstate(all="ignore"):
        drawn = np.concatenate([figures(cells.rows, weights) for weights in cells.resamples(number, seed)])
        value = float(figures(cells.rows, cells.counts[None, :])[0])
    undefined = np.isnan(drawn)
    if undefined.mean() > UNDEFINED_SHARE:
        return f"{100 * undefined.mean():.0f} % of the resamples leave the figure undefined"
    drawn = np.sort(drawn[~undefined])
    if drawn[0] == drawn[-1]:
        return f"every resample of the {units} gives the same figure"
    name = f"cluster bootstrap of {units}" if grouped else "bootstrap"
    bias, acceleration = _bias(drawn, value), _acceleration(cells, figures, seed)
    if math.isfinite(bias) and math.isfinite(acceleration):
        return Resampled(drawn, bias, acceleration, cells.units, f"BCa {name}")
    return Resampled(drawn, 0.0, 0.0, cells.units, f"percentile {name} (BCa is degenerate here)")


def sums_of(rows: NDArray[Any], clusters: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The sums and the size of each cluster, and its number; the same bits in any order of the rows.

    Shapes: rows `(N, K)`; clusters `(N,)`; gives `(G, K + 1)` and `(G,)`.
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    order = np.lexsort((*rows.T[::-1], cluster))
    starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    sums = np.add.reduceat(rows[order].astype(np.float64), starts, axis=0)
    sizes = np.diff(np.append(starts, len(rows))).astype(np.float64)
    return np.concatenate([sums, sizes[:, None]], axis=1), np.arange(len(starts))


def ratio_of(aggregate: Aggregate, column: int = 0) -> Figures:
    """The mean, or its root, from rows of sums by cluster whose last column is the size."""

    def figures(rows: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
        sums = np.einsum("rn,nk->rk", weights.astype(np.float64), rows[:, [column, -1]])
        means = np.asarray(sums[:, 0] / sums[:, 1], np.float64)
        return np.sqrt(means) if aggregate is Aggregate.ROOT_MEAN else means

    return figures


def _between(found: Uncertainty, confidence: float) -> Interval:
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    low, high = (found.end(tail) for tail in tails)
    if isinstance(found, Resampled) and (low is None or high is None):
        plain = Resampled(found.drawn, 0.0, 0.0, found.units, "")
        low, high = (plain.end(tail) for tail in tails)
        method = found.method.replace("BCa", "percentile") + " (BCa is degenerate here)"
        return Interval(low, high, method)
    return Interval(low, high, found.method)


def _resamples(cells: Cells) -> int:
    """How many resamples the work allows for; a function of the cells alone."""
    return max(1, min(RESAMPLES, WORK // _cost(cells)))


def _cost(cells: Cells) -> int:
    cost: int = len(cells.counts) * max(1, cells.rows[0].size)
    return max(cost, cells.units if cells.cluster is not None else 1)


def _bias(drawn: NDArray[np.float64], value: float) -> float:
    from scipy.stats import norm

    below = (np.count_nonzero(drawn < value) + np.count_nonzero(drawn <= value)) / 2
    return float(norm.ppf(below / len(drawn)))


def _acceleration(cells: Cells, figures: Figures, seed: int) -> float:
    with np.errstate(all="ignore"):
        if min(len(cells.counts), cells.units) <= JACKKNIFE_ROWS:
            parts = [(figures(cells.rows, weights), times) for weights, times in cells.without_one()]
            without, times = (np.concatenate(part) for part in zip(*parts, strict=True))
        else:
            without = np.concatenate([figures(cells.rows, part) for part in cells.without(JACKKNIFE_ROWS, seed)])
            times = np.ones(len(without), np.int64)
    known = ~np.isnan(without)
    without, times = without[known], times[known]
    if not len(without):
        return 0.0
    away = (without * times).sum() / times.sum() - without
    second = float((times * away**2).sum())
    return float((times * away**3).sum()) / (6 * second**1.5) if second > 0 else math.nan


def _jackknife(cells: Cells, figures: Figures, seed: int) -> Student | str:
    """The standard error from the figures without one of some parts of about equal size.

    Source: Shao and Tu, "The Jackknife and Bootstrap" (1995), section 2.3.
    """
    groups = min(cells.units, max(GROUPS[0], min(GROUPS[1], JACKKNIFE_WORK // _cost(cells))))
    with np.errstate(all="ignore"):
        value = float(figures(cells.rows, cells.counts[None, :])[0])
        without = np.concatenate([figures(cells.rows, part) for part in cells.without(groups, seed)])
    error = math.sqrt((groups - 1) / groups * float(((without - without.mean()) ** 2).sum()))
    if not math.isfinite(error):
        return "leaving out a part leaves the figure undefined"
    if error == 0:
        return "leaving out any part gives the same figure"
    name = f"jackknife of {groups} parts" + (f", {cells.units} groups" if cells.cluster is not None else "")
    return Student(value, error, groups - 1, name)


def _counted(trials: tuple[int, ...], value: float, confidence: float, *, grouped: bool) -> Interval:
    """The interval of a mean of shares that are all 0 or all 1: the mean of their exact bounds, each at its part of
    the error allowed (Bonferroni)."""
    bounds = [proportion_interval(int(value) * count, count, 1 - (1 - confidence) / len(trials)) for count in trials]
    low, high = (
        math.fsum(end for end in ends if end is not None) / len(bounds)
        for ends in zip(*((bound.low, bound.high) for bound in bounds), strict=True)
    )
    what = f"{trials[0]} groups" if grouped else "/".join(str(count) for count in trials[:4])
    shown = what + ("/..." if len(trials) > 4 else "") + ("" if grouped else " trials")
    return Interval(low, high, f"Clopper-Pearson of {shown} (all resamples are alike)")
