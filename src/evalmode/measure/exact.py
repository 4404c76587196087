"""Sums whose bits do not depend on order, batching or sharding.

Source: Shewchuk, "Adaptive precision floating-point arithmetic", Discrete Comput. Geom. 18 (1997), through `math.fsum`.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

__all__ = ["exact_mean", "exact_sum"]


def exact_sum(values: NDArray[np.float64]) -> float:
    """The correctly rounded sum of float64 values: the same bits in any order and however they were grouped.

    Infinite values of one sign give that infinity, of both signs NaN, and a sum beyond the range of float64 infinity.

    Example:
        >>> exact_sum(np.array([1e100, 1.0, -1e100]))
        1.0
    """
    infinite = values[~np.isfinite(values)]
    if infinite.size:
        return float(sum(infinite.tolist()))
    try:
        return math.fsum(values)
    except OverflowError:  # also where only a partial sum overflows, which depends on the order
        return _as_float(sum(map(Fraction, values.tolist()), Fraction()))


def exact_mean(values: NDArray[np.float64]) -> float:
    """The correctly rounded sum divided by the number of values.

    Raises:
        ValueError: there are no values.

    Example:
        >>> exact_mean(np.array([1.0, 2.0]))
        1.5
    """
    if not values.size:
        raise ValueError("the mean of no values")
    total = exact_sum(values)
    if math.isinf(total) and bool(np.isfinite(values).all()):
        return _as_float(sum(map(Fraction, values.tolist()), Fraction()) / values.size)
    return total / values.size


def _as_float(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf
