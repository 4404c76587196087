"""Two results on the same samples: the difference, its interval, and what may be claimed of it.

Pairing the samples removes what is hard or easy about them, which an unpaired comparison takes for noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.errors import ComparisonError, UsageError
from evalmode.measure.bootstrap import Figures, Resampled, Student, Uncertainty, ratio_of, sums_of, uncertainty
from evalmode.measure.intervals import NO_SCIPY, Interval, check_confidence, has_scipy, within
from evalmode.measure.metric import Aggregate, Metric
from evalmode.measure.resampling import cells_of
from evalmode.measure.score_interval import PairedProportions

__all__ = ["Paired", "holm", "mcnemar", "paired"]

SIMULATED = 10_000
"""Differences up to which a mean is resampled; beyond, Student's t is as good."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Result b beside result a on the same samples. `effect` is b minus a, whichever side is better.

    `p_value` is that of no difference, two-sided. `method` says how interval and claims were made, or why there are
    none, `test` how the p-value. `better` of 'a' and 'b' is the one that is superior at this confidence, '' where
    neither is. With a margin, `equivalent` says that the difference lies within it, and `non_inferior` that b is not
    worse than a by as much as it; each p-value is one-sided and compared with 1 - confidence. None is: not tested.

    `only_a` and `only_b` count the samples that only the one got right, for proportions.
    """

    metric: str
    samples: int
    value_a: float
    value_b: float
    effect: float
    low: float | None
    high: float | None
    confidence: float
    p_value: float | None
    method: str
    test: str
    better: str = ""
    margin: float | None = None
    equivalent: bool | None = None
    equivalence_p: float | None = None
    non_inferior: bool | None = None
    non_inferiority_p: float | None = None
    only_a: int | None = None
    only_b: int | None = None


def paired(
    metric: Metric,
    rows_a: NDArray[Any],
    rows_b: NDArray[Any],
    *,
    confidence: float = 0.95,
    margin: float | None = None,
    clusters: NDArray[Any] | None = None,
) -> Paired:
    """What the same samples say of two results.

    Decisions are tested by McNemar's exact test, and their interval is Tango's score interval; anything else, and
    whatever has `clusters`, is resampled in pairs. Equivalence is two one-sided tests (TOST). Where only `k` samples or
    groups, tell the two apart, no one-sided p-value lies below what `k` fair coins would show, `2**-k`.

    Shapes: rows `(N,)` or `(N, K)` as `metric.per_sample` gives them, of the same samples in the same order; clusters
    `(N,)`, the group of each sample. Units: `margin` is in those of the metric.

    Raises:
        ComparisonError: the two do not hold the same number of samples or columns.
        UsageError: there are no samples, `margin` is not above 0, or `confidence` is not between 0 and 1.

    Example:
        >>> from evalmode.measure.accuracy import ACCURACY
        >>> a, b = np.ones(100, bool), np.ones(100, bool)
        >>> paired(ACCURACY, a, b).p_value
        1.0

    Source: McNemar, Psychometrika 12 (1947); Tango, Stat. Med. 17 (1998); Schuirmann, J. Pharmacokinet. Biopharm. 15
    (1987).
    """
    check_confidence(confidence)
    _check(metric, rows_a, rows_b, margin, clusters)
    values = metric.figure(rows_a), metric.figure(rows_b)
    only = _disagreements(metric, rows_a, rows_b)
    effect = values[1] - values[0] if only is None else (only[1] - only[0]) / len(rows_a)
    p_value: float | None = None
    test = ""
    found: Uncertainty | PairedProportions | str
    if not has_scipy():
        found = NO_SCIPY
    elif only is not None and clusters is None:
        found = PairedProportions(*only, len(rows_a))
        p_value, test = mcnemar(*only), "McNemar, exact"
    else:
        found = _resampled(metric, rows_a, rows_b, clusters)
    interval, least = _interval(metric, found, confidence), 0.0
    if test and margin is not None:
        least = max(0.0, 1 - margin) ** len(rows_a)  # of no disagreement, were that share of the decisions worse
    elif not test:
        least = 0.5 ** _differing(rows_a, rows_b, clusters)
        p_value, test = _inverted(found, interval.method, least)
    return Paired(
        metric=metric.name,
        samples=len(rows_a),
        value_a=values[0],
        value_b=values[1],
        effect=effect,
        low=interval.low,
        high=interval.high,
        confidence=confidence,
        p_value=p_value,
        method=interval.method,
        test=test,
        better=_better(metric.higher_is_better, effect, p_value, confidence),
        margin=margin,
        only_a=None if only is None else only[0],
        only_b=None if only is None else only[1],
        **_claims(found, margin, confidence, metric.higher_is_better, least),
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value of McNemar's test; 1 where no sample tells the two apart.

    Example:
        >>> mcnemar(0, 0), mcnemar(1, 9)
        (1.0, 0.021484375)
    """
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P-values adjusted for their number: reject those below a level, and some true hypothesis is rejected that often.

    Raises:
        UsageError: a value is not from 0 to 1.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        (0.03, 0.06, 0.06)

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6 (1979).
    """
    if any(not 0 <= value <= 1 for value in p_values):
        raise UsageError(f"p-values {list(p_values)}", expected="numbers from 0 to 1")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return tuple(adjusted)


def _check(
    metric: Metric, rows_a: NDArray[Any], rows_b: NDArray[Any], margin: float | None, clusters: NDArray[Any] | None
) -> None:
    if rows_a.shape != rows_b.shape:
        raise ComparisonError(
            f"{metric.name}: rows of shape {rows_a.shape} against {rows_b.shape}",
            expected="the same samples in the same order, measured alike",
            fix="evaluate both on the same data",
        )
    if clusters is not None and clusters.shape != (len(rows_a),):
        raise ComparisonError(
            f"{metric.name}: clusters of shape {clusters.shape} for {len(rows_a)} samples",
            expected="the group of each sample, shape (samples,)",
        )
    if margin is not None and not 0 < margin < math.inf:
        raise UsageError(
            f"margin is {margin}", expected=f"a number above 0, in the unit of {metric.name}", fix="margin=0.01"
        )


def _disagreements(metric: Metric, rows_a: NDArray[Any], rows_b: NDArray[Any]) -> tuple[int, int] | None:
    """How many samples only a got right, and only b; None where the metric is no proportion."""
    if metric.aggregate is not Aggregate.PROPORTION:
        return None
    first, second = rows_a.astype(np.bool_), rows_b.astype(np.bool_)
    return int((first & ~second).sum()), int((second & ~first).sum())


def _differing(rows_a: NDArray[Any], rows_b: NDArray[Any], clusters: NDArray[Any] | None) -> int:
    """How many samples, or groups, tell the two apart."""
    apart = (rows_a != rows_b).reshape(len(rows_a), -1).any(1)
    return int(apart.sum()) if clusters is None else len(np.unique(clusters[apart]))


def _resampled(
    metric: Metric, rows_a: NDArray[Any], rows_b: NDArray[Any], clusters: NDArray[Any] | None
) -> Uncertainty | str:
    """What pairs of rows, drawn together, say of the difference of the two figures."""
    both = np.concatenate([rows.reshape(len(rows), -1).astype(np.float64) for rows in (rows_a, rows_b)], axis=1)
    if not bool(np.isfinite(both).all()):
        return "no interval: not every value is finite"
    if bool((rows_a == rows_b).all()):
        return f"no interval: both give the same value on all {len(rows_a)} samples"
    found: Uncertainty | str
    if metric.statistic is None and clusters is not None:
        sums, numbers = sums_of(both, clusters)
        found = uncertainty(
            cells_of(sums, numbers), _difference(ratio_of(metric.aggregate, 0), ratio_of(metric.aggregate, 1))
        )
    elif metric.aggregate is Aggregate.MEAN:
        found = _of_means(metric, both[:, 1] - both[:, 0])
    else:
        half = both.shape[1] // 2
        flat = rows_a.ndim == 1

        def side(columns: slice) -> Figures:
            def figures(rows: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
                part = rows[:, columns]
                return metric.resampled(part[:, 0] if flat else part, weights)

            return figures

        found = uncertainty(cells_of(both, clusters), _difference(side(slice(half)), side(slice(half, None))))
    return f"no interval: {found}" if isinstance(found, str) else found


def _of_means(metric: Metric, differences: NDArray[np.float64]) -> Uncertainty | str:
    if len(differences) <= SIMULATED:
        return uncertainty(cells_of(differences), metric.resampled)
    ordered = np.sort(differences)  # so that the sums below have the same bits in any order
    error = float(ordered.std(ddof=1)) / math.sqrt(len(ordered))
    if error == 0:
        return f"all {len(ordered)} differences are equal"
    return Student(metric.figure(ordered), error, len(ordered) - 1, "Student's t of paired differences")


def _difference(first: Figures, second: Figures) -> Figures:
    def figures(rows: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
        return second(rows, weights) - first(rows, weights)

    return figures


def _interval(metric: Metric, found: Uncertainty | PairedProportions | str, confidence: float) -> Interval:
    if isinstance(found, str):
        return Interval(None, None, found)
    low, high = found.end((1 - confidence) / 2), found.end((1 + confidence) / 2)
    if low is None or high is None:
        return Interval(None, None, f"no interval: too skewed for a confidence of {confidence}")
    name = found.method
    interval = Interval(low, high, f"paired {name}" if isinstance(found, Resampled) else name)
    least, most = metric.range
    return within(interval, least - most, most - least)


def _inverted(found: Uncertainty | PairedProportions | str, method: str, least: float) -> tuple[float | None, str]:
    """The two-sided p-value that an interval's ends have at no difference, and how it came about."""
    if least == 1:
        return 1.0, "both give the same value on every sample"
    if isinstance(found, str):
        return None, ""
    tail = found.tail(0.0)
    return min(1.0, 2 * max(min(tail, 1 - tail), least)), f"the same {method}, inverted"


def _claims(
    found: Uncertainty | PairedProportions | str,
    margin: float | None,
    confidence: float,
    better: bool | None,
    least: float,
) -> dict[str, Any]:
    if margin is None or isinstance(found, str):
        return {}
    below, above = max(found.tail(-margin), least), max(1 - found.tail(margin), least)
    worse = None if better is None else below if better else above
    return {
        "equivalence_p": max(below, above),
        "equivalent": max(below, above) < 1 - confidence,
        "non_inferiority_p": worse,
        "non_inferior": None if worse is None else worse < 1 - confidence,
    }


def _better(better: bool | None, effect: float, p_value: float | None, confidence: float) -> str:
    if better is None or p_value is None or p_value >= 1 - confidence or effect == 0:
        return ""
    return "b" if (effect > 0) is better else "a"
