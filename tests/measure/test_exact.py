"""Exact sums against rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalmode.measure.exact import exact_mean, exact_sum

FINITE = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30)
LARGEST = np.finfo(np.float64).max


def rounded(exact):
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


@given(FINITE, st.randoms(use_true_random=False))
def test_the_sum_is_correctly_rounded_in_any_order(values, random):
    expected = rounded(sum(map(Fraction, values)))
    assert exact_sum(np.array(values)) == expected
    shuffled = random.sample(values, len(values))
    assert exact_sum(np.array(shuffled)) == expected
    assert exact_mean(np.array(shuffled)).hex() == exact_mean(np.array(values)).hex()


def test_a_partial_overflow_does_not_decide():
    assert exact_sum(np.array([LARGEST, LARGEST, -LARGEST])) == LARGEST
    assert exact_mean(np.array([LARGEST, LARGEST])) == LARGEST


def test_infinities_keep_their_sign():
    assert exact_sum(np.array([math.inf, 1.0])) == math.inf
    assert exact_mean(np.array([-math.inf, 1.0])) == -math.inf
    assert math.isnan(exact_sum(np.array([math.inf, -math.inf])))


def test_the_mean_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        exact_mean(np.array([]))
