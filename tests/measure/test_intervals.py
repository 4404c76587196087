"""Intervals against exact binomial sums, scipy's bootstrap and scipy's distributions."""

import math
import random
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, bootstrap, norm, t

from evalmode.errors import UsageError
from evalmode.measure import intervals
from evalmode.measure.intervals import mean_interval, proportion_interval


def upper_tail(count, total, p):
    return sum(math.comb(total, k) * p**k * (1 - p) ** (total - k) for k in range(count, total + 1))


@given(st.integers(1, 60), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_proportion_is_the_beta_quantile(total, data, confidence):
    count = data.draw(st.integers(0, total))
    interval = proportion_interval(count, total, confidence)
    alpha = 1 - confidence
    low = 0.0 if count == 0 else beta.ppf(alpha / 2, count, total - count + 1)
    high = 1.0 if count == total else beta.ppf(1 - alpha / 2, count + 1, total - count)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    assert interval.low <= count / total <= interval.high
    assert interval.method == "Clopper-Pearson"


def test_proportion_inverts_the_exact_binomial_test():
    interval = proportion_interval(13, 20, 0.95)
    assert float(upper_tail(13, 20, Fraction(interval.low))) == pytest.approx(0.025, abs=1e-9)
    assert float(1 - upper_tail(14, 20, Fraction(interval.high))) == pytest.approx(0.025, abs=1e-9)


def test_proportion_covers_at_least_as_often_as_it_says():
    ends = [proportion_interval(count, 15, 0.9) for count in range(16)]
    for p in np.linspace(0.01, 0.99, 99):
        held = sum(math.comb(15, k) * p**k * (1 - p) ** (15 - k) for k in range(16) if ends[k].low <= p <= ends[k].high)
        assert held >= 0.9


@pytest.mark.parametrize("seed", range(3))
def test_mean_is_scipys_bca(seed):
    values = np.random.default_rng(seed).exponential(size=80)
    level = 1 - 2 * norm.cdf(np.sqrt(80 / 79) * t.ppf(0.025, 79))
    expected = bootstrap(
        (np.sort(values),),
        np.mean,
        n_resamples=9999,
        method="BCa",
        confidence_level=level,
        rng=np.random.default_rng(0),
    ).confidence_interval
    interval = mean_interval(values)
    assert interval.method == "BCa bootstrap"
    assert (interval.low, interval.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert interval.low < values.mean() < interval.high


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40), st.randoms(use_true_random=False))
def test_mean_has_the_same_bits_in_any_order(values, shuffle):
    other = shuffle.sample(values, len(values))
    assert mean_interval(np.array(values)) == mean_interval(np.array(other))


@given(st.floats(1e-4, 1 - 1e-4), st.integers(2, 10**6))
def test_a_narrowed_quantile_is_the_inverse_of_a_widened_one(tail, units):
    assert intervals.narrowed(intervals.widened(tail, units), units) == pytest.approx(tail)
    assert abs(intervals.widened(tail, units)) >= abs(norm.ppf(tail)) * (1 - 1e-9)


def test_the_analytic_form_meets_the_simulated_one(monkeypatch):
    values = np.random.default_rng(5).exponential(size=1000)
    simulated = mean_interval(values)
    monkeypatch.setattr(intervals, "LARGEST_BOOTSTRAP", 999)
    analytic = mean_interval(values)
    assert analytic.method.startswith("ABC")
    width = simulated.high - simulated.low
    assert analytic.low == pytest.approx(simulated.low, abs=0.03 * width)
    assert analytic.high == pytest.approx(simulated.high, abs=0.03 * width)
    # The correction for skewness is there: the upper side of an exponential's mean is the longer one.
    assert analytic.high - values.mean() > 1.05 * (values.mean() - analytic.low)


def test_the_analytic_form_gives_up_where_it_has_a_pole():
    values = np.zeros(10_000)
    values[0] = 1.0
    assert mean_interval(values, 0.95).low is not None
    assert "too skewed" in mean_interval(values, 1 - 1e-12).method


@pytest.mark.parametrize("size", [50, 5000])
@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1e200])
def test_the_scale_of_the_values_does_not_matter(size, scale):
    values = np.random.default_rng(0).exponential(size=size)
    plain, scaled = mean_interval(values), mean_interval(values * scale)
    assert scaled.low == pytest.approx(plain.low * scale, rel=1e-9)
    assert scaled.high == pytest.approx(plain.high * scale, rel=1e-9)


@pytest.mark.parametrize(
    ("values", "words"),
    [([2.0], "one sample"), ([1.5] * 9, "all 9 values are equal"), ([1.0, math.inf], "not every value is finite")],
)
def test_no_interval_is_better_than_a_false_one(values, words):
    interval = mean_interval(np.array(values))
    assert (interval.low, interval.high) == (None, None)
    assert words in interval.method


def test_the_global_streams_are_left_alone():
    before = random.getstate(), np.random.get_state()[1].tolist()
    mean_interval(np.arange(20.0))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_without_scipy_the_method_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    for interval in (proportion_interval(1, 2), mean_interval(np.array([1.0, 2.0]))):
        assert (interval.low, interval.high) == (None, None)
        assert interval.method == "no interval: pip install 'evalmode[evaluate]'"


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, -1, math.nan])
def test_a_confidence_is_between_0_and_1(confidence):
    with pytest.raises(UsageError, match="confidence"):
        proportion_interval(1, 2, confidence)
    with pytest.raises(UsageError, match="confidence"):
        mean_interval(np.array([1.0, 2.0]), confidence)


@pytest.mark.parametrize(("count", "total"), [(3, 2), (-1, 2), (0, 0)])
def test_counts_that_are_none(count, total):
    with pytest.raises(UsageError):
        proportion_interval(count, total)
