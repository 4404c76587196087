"""Paired comparisons against statsmodels, scipy, brute force and simulation."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm, ttest_rel
from statsmodels.stats.contingency_tables import mcnemar as oracle
from statsmodels.stats.multitest import multipletests

from evalmode.errors import ComparisonError, UsageError
from evalmode.measure.accuracy import ACCURACY
from evalmode.measure.catalog import METRICS
from evalmode.measure.log_loss import LOG_LOSS
from evalmode.measure.metric import metric_of
from evalmode.measure.paired import holm, mcnemar, paired
from evalmode.measure.root_mean_squared_error import ROOT_MEAN_SQUARED_ERROR
from evalmode.measure.score_interval import PairedProportions


def decisions(both, only_a, only_b, neither):
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_decisions_are_tested_as_statsmodels_does(both, only_a, only_b):
    assume(only_a + only_b)
    found = paired(ACCURACY, *decisions(both, only_a, only_b, 3))
    expected = oracle([[both, only_a], [only_b, 3]], exact=True).pvalue
    assert found.p_value == pytest.approx(min(1.0, expected), rel=1e-9)
    assert (found.only_a, found.only_b, found.test) == (only_a, only_b, "McNemar, exact")
    assert found.effect == pytest.approx(found.value_b - found.value_a)


def test_no_disagreement_is_an_answer():
    right = np.array([True] * 539 + [False])
    found = paired(ACCURACY, right, right, margin=0.01)
    assert (found.p_value, found.effect, found.better) == (1.0, 0.0, "")
    assert found.low == pytest.approx(-found.high)
    # With no disagreement among n, the score interval reaches z^2 / (n + z^2).
    assert found.high == pytest.approx(norm.ppf(0.975) ** 2 / (540 + norm.ppf(0.975) ** 2))
    assert found.equivalent
    assert mcnemar(0, 0) == 1.0


def likeliest(only_a, only_b, total, difference):
    """The share that only a gets right which makes the counts likeliest, at that difference: by brute force."""

    def unlikely(share):
        other, rest = share + difference, 1 - 2 * share - difference
        parts = ((only_a, share), (only_b, other), (total - only_a - only_b, rest))
        return -sum(count * math.log(max(part, 1e-300)) for count, part in parts if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    return minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x


@settings(max_examples=40)
@given(st.integers(0, 15), st.integers(0, 15), st.integers(1, 60), st.floats(-0.9, 0.9))
def test_the_score_is_that_of_the_likeliest_shares(only_a, only_b, rest, at):
    total = only_a + only_b + rest
    share = likeliest(only_a, only_b, total, at)
    variance = (2 * share + at - at**2) / total
    assume(variance > 1e-6)
    score = ((only_b - only_a) / total - at) / math.sqrt(variance)
    tail = PairedProportions(only_a, only_b, total).tail(at)
    assert tail == pytest.approx(norm.cdf(-score), abs=2e-4)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 60), st.floats(0.001, 0.999))
def test_the_end_of_a_score_interval_has_that_tail(only_a, only_b, rest, tail):
    found = PairedProportions(only_a, only_b, only_a + only_b + rest)
    end = found.end(tail)
    assert -1 <= end <= 1
    assert found.tail(end) == pytest.approx(tail, abs=1e-6)
    mirrored = PairedProportions(only_b, only_a, only_a + only_b + rest)
    assert mirrored.end(1 - tail) == pytest.approx(-end, abs=1e-6)


def test_the_score_interval_covers():
    generator = np.random.default_rng(0)
    counts = generator.multinomial(100, [0.05, 0.12, 0.83], size=1500)
    ends = {}
    held = 0
    for only_a, only_b, _ in counts.tolist():
        if (only_a, only_b) not in ends:
            found = PairedProportions(only_a, only_b, 100)
            ends[only_a, only_b] = found.end(0.025), found.end(0.975)
        low, high = ends[only_a, only_b]
        held += low <= 0.07 <= high
    assert held / 1500 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("size", [300, 12_000])
def test_means_agree_with_the_paired_t_test(size):
    generator = np.random.default_rng(1)
    a = generator.exponential(size=size)
    b = a + generator.normal(0.02, 0.2, size=size)
    found, expected = paired(LOG_LOSS, a, b), ttest_rel(b, a)
    interval = expected.confidence_interval(0.95)
    width = interval.high - interval.low
    assert found.effect == pytest.approx((b - a).mean())
    assert (found.low, found.high) == (
        pytest.approx(interval.low, abs=0.05 * width),
        pytest.approx(interval.high, abs=0.05 * width),
    )
    assert found.p_value == pytest.approx(expected.pvalue, rel=0.4, abs=0.01)


def test_pairing_finds_what_an_unpaired_look_does_not():
    generator = np.random.default_rng(2)
    a = generator.exponential(size=400)
    b = a - 0.02 - generator.normal(0, 0.05, 400)
    found = paired(LOG_LOSS, a, b)
    assert found.p_value < 0.001
    assert found.better == "b"
    assert paired(LOG_LOSS, b, a).better == "a"


def rows_of(name, size, seed=0):
    generator = np.random.default_rng(seed)
    target = np.arange(size) % 2
    first, second = (generator.normal(size=size) + shift * target for shift in (1.0, 1.6))
    if name == "AUROC":
        return tuple(np.stack([scores, target], axis=1).astype(float) for scores in (first, second))
    if name == "macro F1":
        return tuple(np.stack([target, scores > 0.5], axis=1).astype(float) for scores in (first, second))
    return first**2, (0.8 * second) ** 2


@pytest.mark.parametrize("name", ["AUROC", "macro F1", "root mean squared error"])
@pytest.mark.parametrize("clustered", [False, True])
def test_figures_of_all_samples_are_compared_in_pairs(name, clustered):
    a, b = rows_of(name, 300)
    clusters = np.arange(300) // 3 if clustered else None
    found = paired(METRICS[name], a, b, clusters=clusters, margin=10.0)
    assert found.effect == METRICS[name].figure(b) - METRICS[name].figure(a)
    assert found.low < found.effect < found.high
    assert found.equivalent
    assert "bootstrap" in found.method
    assert ("100 groups" in found.method) == clustered
    order = np.random.default_rng(3).permutation(300)
    moved = paired(
        METRICS[name], a[order], b[order], clusters=None if clusters is None else clusters[order], margin=10.0
    )
    assert moved == found


def rows_of_two(generator, name, size):
    """Two models of which the second is worse."""
    target = np.arange(size) % 2
    base, noise = generator.normal(size=size), generator.normal(size=size)
    scores = base + 1.2 * target, base + 0.6 * target + 0.5 * noise
    if name == "AUROC":
        return tuple(np.stack([one, target], axis=1).astype(float) for one in scores)
    if name == "macro F1":
        return tuple(np.stack([target, one > 0.5], axis=1).astype(float) for one in scores)
    return np.abs(base), np.abs(base) + 0.2 + 0.2 * noise


def test_the_two_sides_mirror_each_other():
    a, b = rows_of("AUROC", 200)
    one, other = paired(METRICS["AUROC"], a, b), paired(METRICS["AUROC"], b, a)
    assert one.effect == -other.effect
    assert one.low == pytest.approx(-other.high, abs=0.01)
    assert one.p_value == pytest.approx(other.p_value, rel=0.2, abs=1e-3)


def test_margins_follow_the_direction_of_the_metric():
    generator = np.random.default_rng(4)
    a = generator.exponential(size=500)
    worse = a + generator.normal(0.05, 0.01, 500)
    lower = paired(LOG_LOSS, a, worse, margin=0.02)
    assert (lower.non_inferior, lower.equivalent, lower.better) == (False, False, "a")
    assert paired(LOG_LOSS, worse, a, margin=0.02).non_inferior  # better by more than the margin is not inferior
    assert paired(LOG_LOSS, a, worse, margin=0.1).equivalent
    unknown = paired(metric_of("cost", a), a, worse, margin=0.1)
    assert (unknown.non_inferior, unknown.equivalent, unknown.better) == (None, True, "")
    right = generator.random(500) < 0.9
    drop = right & (generator.random(500) < 0.97)
    assert paired(ACCURACY, right, drop, margin=0.1).non_inferior
    assert not paired(ACCURACY, right, drop, margin=0.01).non_inferior


def test_a_claim_is_what_the_interval_at_twice_the_level_says():
    a, b = rows_of("AUROC", 200)
    found = paired(METRICS["AUROC"], a, b, confidence=0.9)
    inside = paired(METRICS["AUROC"], a, b, confidence=0.95, margin=found.high + 5e-4)
    outside = paired(METRICS["AUROC"], a, b, confidence=0.95, margin=found.high - 5e-4)
    assert (inside.equivalent, outside.equivalent) == (True, False)


@pytest.mark.parametrize("name", ["AUROC", "root mean squared error"])
def test_equal_values_are_an_answer(name):
    rows = rows_of(name, 50)[0]
    found = paired(METRICS[name], rows, rows, margin=0.1)
    assert (found.p_value, found.effect, found.low, found.equivalent) == (1.0, 0.0, None, None)
    assert "the same value on all 50 samples" in found.method


@pytest.mark.parametrize("clusters", [None, np.arange(40) // 2])
def test_few_samples_that_differ_show_no_more_than_so_many_coins(clusters):
    """However alike the rest is: of 3 pairs that all favour one side, chance alone does so once in 8 times."""
    a = np.linspace(0.5, 1.5, 40)
    for differing in (1, 3, 6):
        b = a.copy()
        b[: 2 * differing : 2] -= 0.1
        found = paired(LOG_LOSS, a, b, margin=1.0, clusters=clusters)
        assert found.p_value >= 2 * 0.5**differing
        assert found.equivalence_p >= 0.5**differing and found.non_inferiority_p >= 0.5**differing
        assert found.equivalent == (differing > 4)


@pytest.mark.parametrize("size", [6, 10, 25])
@pytest.mark.parametrize("name", ["mean absolute error", "macro F1", "AUROC"])
def test_equivalence_is_seldom_claimed_of_models_that_differ_by_the_margin(name, size):
    """The second is worse by a little more than the margin in all that could be drawn: a claim is an error."""
    generator = np.random.default_rng(size)
    metric, claims, tried = METRICS[name], 0, 60
    whole = rows_of_two(generator, name, 20_000)
    margin = 0.98 * abs(metric.figure(whole[1]) - metric.figure(whole[0]))
    for _ in range(tried):
        a, b = rows_of_two(generator, name, size)
        claims += bool(paired(metric, a, b, margin=margin).non_inferior)
    assert claims / tried <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / tried)


def test_a_constant_shift_has_no_interval_and_says_so():
    values = np.arange(10.0)
    found = paired(LOG_LOSS, values, values + 1)
    assert (found.effect, found.low, found.p_value) == (1.0, None, None)
    assert "no interval" in found.method


def test_infinite_values_are_told():
    found = paired(LOG_LOSS, np.array([1.0, math.inf]), np.array([1.0, 2.0]))
    assert found.low is None
    assert "not every value is finite" in found.method


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ComparisonError, match="same samples"):
        paired(ACCURACY, np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(ComparisonError, match="clusters"):
        paired(ACCURACY, np.ones(3, bool), np.ones(3, bool), clusters=np.arange(2))
    for margin in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="margin"):
            paired(ACCURACY, np.ones(3, bool), np.ones(3, bool), margin=margin)
    with pytest.raises(UsageError, match="no samples"):
        paired(ROOT_MEAN_SQUARED_ERROR, np.ones(0), np.ones(0))


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_that_of_statsmodels(p_values):
    expected = multipletests(p_values, method="holm")[1].tolist() if p_values else []
    assert holm(p_values) == pytest.approx(expected)


def test_holm_refuses_what_is_no_p_value():
    with pytest.raises(UsageError, match="p-values"):
        holm([0.5, math.nan])


@pytest.mark.parametrize(("samples", "margin"), [(1, 0.75), (3, 0.5), (9, 0.25), (133, 0.02), (149, 0.02)])
def test_equal_decisions_claim_no_more_than_their_number_shows(samples, margin):
    same = np.ones(samples, bool)
    found = paired(ACCURACY, same, same, margin=margin)
    chance = (1 - margin) ** samples
    assert found.equivalence_p >= chance
    assert found.non_inferiority_p >= chance
    assert found.equivalent == (samples == 149)
    assert found.p_value == 1.0
