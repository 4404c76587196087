"""Intervals around a figure: exact for proportions, bootstrapped for means.

Every interval says by which method it was made, or why there is none: no interval is better than a false one.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evalmode.errors import UsageError
from evalmode.measure.exact import exact_mean

__all__ = [
    "Interval",
    "check_confidence",
    "has_scipy",
    "mean_interval",
    "narrowed",
    "proportion_interval",
    "widened",
    "within",
]

RESAMPLES = 9999
LARGEST_BOOTSTRAP = 4000
"""Samples up to which the bootstrap is simulated: SciPy's jackknife needs time and memory that grow with the square."""

NO_SCIPY = "no interval: pip install 'evalmode[evaluate]'"


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`, both None where none could be given; `method` says how, or why not."""

    low: float | None
    high: float | None
    method: str


def proportion_interval(count: int, total: int, confidence: float = 0.95) -> Interval:
    """The Clopper-Pearson interval of a proportion: exact, it holds at least at the stated confidence.

    Raises:
        UsageError: `confidence` is not between 0 and 1, or the counts are not 0 <= count <= total with total above 0.

    Example:
        >>> proportion_interval(539, 540).low > 0.98
        True

    Source: Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934).
    """
    check_confidence(confidence)
    if not 0 <= count <= total or total < 1:
        raise UsageError(f"a proportion of {count} in {total}", expected="0 <= count <= total, total above 0")
    if not has_scipy():
        return Interval(None, None, NO_SCIPY)
    from scipy.stats import binomtest

    bounds = binomtest(count, total).proportion_ci(confidence, method="exact")
    return Interval(float(bounds.low), float(bounds.high), "Clopper-Pearson")


def mean_interval(values: NDArray[np.float64], confidence: float = 0.95, *, seed: int = 0) -> Interval:
    """The bias-corrected and accelerated (BCa) bootstrap interval of a mean.

    Above `LARGEST_BOOTSTRAP` values it is ABC, the analytic form of BCa. The values are sorted first, so that the same
    samples give the same bits in any order; `seed` is the bootstrap's own stream, the global ones are not touched.

    Shapes: `(N,)`.

    Raises:
        UsageError: `confidence` is not between 0 and 1, or there are no values.

    Source: Efron, "Better bootstrap confidence intervals", J. Am. Stat. Assoc. 82 (1987); for few values `widened`.
    """
    check_confidence(confidence)
    if not values.size:
        raise UsageError("an interval of no values", expected="at least one sample")
    if values.size == 1:
        return Interval(None, None, "no interval: one sample")
    if not bool(np.isfinite(values).all()):
        return Interval(None, None, "no interval: not every value is finite")
    if values.min() == values.max():
        return Interval(None, None, f"no interval: all {values.size} values are equal")
    if not has_scipy():
        return Interval(None, None, NO_SCIPY)
    ordered = np.sort(values)
    if ordered.size > LARGEST_BOOTSTRAP:
        return _analytic(ordered, confidence)
    return _bootstrap(ordered, confidence, seed)


def _bootstrap(ordered: NDArray[np.float64], confidence: float, seed: int) -> Interval:
    from scipy.stats import bootstrap, norm

    expanded = 1 - 2 * float(norm.cdf(widened((1 - confidence) / 2, ordered.size)))
    # Scaled to order 1: SciPy squares and cubes the values, which under- or overflows for tiny and huge ones.
    scale = 2.0 ** min(1000, -math.frexp(float(np.abs(ordered).max()))[1])
    for method, name in (("BCa", "BCa bootstrap"), ("percentile", "percentile bootstrap (BCa is degenerate here)")):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # a degenerate result is NaN, which is looked at below
            bounds = bootstrap(
                (ordered * scale,),
                np.mean,
                confidence_level=expanded,
                n_resamples=RESAMPLES,
                batch=max(1, 2_000_000 // ordered.size),
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        low, high = float(bounds.low) / scale, float(bounds.high) / scale
        if math.isfinite(low) and math.isfinite(high):
            return Interval(low, high, name)
    return Interval(None, None, "no interval: the bootstrap is degenerate here")


def _analytic(ordered: NDArray[np.float64], confidence: float) -> Interval:
    """The ABC interval of a mean: linear in the weights, so that its quadratic terms vanish and z0 equals a.

    Source: DiCiccio and Efron, "Bootstrap confidence intervals", Stat. Sci. 11 (1996), section 4.
    """
    from scipy.stats import norm

    mean = exact_mean(ordered)
    scaled = ordered - mean
    # Scaled to order 1, as in the bootstrap; squares and cubes are added in a fixed order, that of the values.
    size = float(max(-scaled[0], scaled[-1]))
    scaled /= size
    powers = scaled * scaled
    second = float(powers.sum())
    powers *= scaled
    third = float(powers.sum())
    acceleration = third / (6 * second**1.5)
    standard_error = size * math.sqrt(second) / ordered.size
    shifts = [acceleration + float(norm.ppf(tail)) for tail in ((1 - confidence) / 2, (1 + confidence) / 2)]
    if any(acceleration * shift >= 1 for shift in shifts):
        return Interval(None, None, f"no interval: the values are too skewed for a confidence of {confidence}")
    low, high = (mean + standard_error * shift / (1 - acceleration * shift) ** 2 for shift in shifts)
    return Interval(low, high, "ABC, the analytic form of the BCa bootstrap")


def within(interval: Interval, least: float, most: float) -> Interval:
    """The interval, cut where no figure can lie.

    Example:
        >>> within(Interval(0.9, 1.1, "jackknife"), 0.0, 1.0).high
        1.0
    """
    if interval.low is None or interval.high is None:
        return interval
    low, high = (min(max(end, least), most) for end in (interval.low, interval.high))
    return interval if (low, high) == (interval.low, interval.high) else Interval(low, high, interval.method)


def widened(tail: float, units: int) -> float:
    """The quantile to use in place of the normal one at `tail`, where so many units were resampled.

    Resamples of n units spread by (n - 1) / n too little, and a normal quantile takes their spread for known.

    Example:
        >>> round(widened(0.025, 20), 2), round(widened(0.025, 2000), 2)
        (-2.15, -1.96)

    Source: Hesterberg, "What teachers should know about the bootstrap", Am. Stat. 69 (2015): the expanded percentile
    interval.
    """
    from scipy.stats import t

    return math.sqrt(units / (units - 1)) * float(t.ppf(tail, units - 1))


def narrowed(quantile: float, units: int) -> float:
    """The tail whose `widened` quantile it is.

    Example:
        >>> round(narrowed(widened(0.025, 20), 20), 6)
        0.025
    """
    from scipy.stats import t

    return float(t.cdf(quantile / math.sqrt(units / (units - 1)), units - 1))


def check_confidence(confidence: float) -> None:
    """Raises `UsageError` where a confidence is not between 0 and 1."""
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}", expected="a number between 0 and 1", fix="confidence=0.95")


def has_scipy() -> bool:
    """Whether scipy is installed: without it there are figures, but no intervals."""
    try:
        return importlib.util.find_spec("scipy") is not None
    except ValueError:  # an entry of None in sys.modules blocks the import
        return False
