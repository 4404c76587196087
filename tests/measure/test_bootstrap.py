"""Resampling any figure: against scipy's bootstrap, brute force, and what it promises."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from evalmode.errors import UsageError
from evalmode.measure.accuracy import ACCURACY
from evalmode.measure.auroc import AUROC, auroc_rows
from evalmode.measure.bootstrap import Resampled, Student, uncertainty
from evalmode.measure.catalog import METRICS
from evalmode.measure.log_loss import LOG_LOSS
from evalmode.measure.resampling import cells_of
from evalmode.measure.summary import metric_record


def test_a_ratio_has_scipys_bca_interval():
    generator = np.random.default_rng(0)
    rows = np.stack([generator.exponential(size=150) * 20, generator.integers(5, 40, 150)], axis=1).astype(float)
    record = metric_record(METRICS["token loss"], rows)
    expected = bootstrap(
        (rows[:, 0], rows[:, 1]),
        lambda loss, count, axis: loss.sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        rng=np.random.default_rng(5),
    ).confidence_interval
    width = expected.high - expected.low
    assert record.low == pytest.approx(expected.low, abs=0.04 * width)
    assert record.high == pytest.approx(expected.high, abs=0.04 * width)


def test_clusters_of_one_sample_change_nothing_and_clusters_of_copies_count_once():
    values = np.random.default_rng(1).exponential(size=120)
    alone = metric_record(LOG_LOSS, values)
    single = metric_record(LOG_LOSS, values, clusters=np.arange(120))
    copies = metric_record(LOG_LOSS, np.repeat(values, 4), clusters=np.repeat(np.arange(120), 4))
    blind = metric_record(LOG_LOSS, np.repeat(values, 4))
    width = alone.high - alone.low
    for record in (single, copies):
        assert record.low == pytest.approx(alone.low, abs=0.05 * width)
        assert record.high == pytest.approx(alone.high, abs=0.05 * width)
        assert "120 groups" in record.method
    assert blind.high - blind.low == pytest.approx(width / 2, rel=0.1)


def test_degenerate_clusters_are_told():
    assert metric_record(LOG_LOSS, np.arange(3.0), clusters=np.zeros(3)).method == "no interval: one group"
    record = metric_record(ACCURACY, np.ones(40, bool), clusters=np.arange(40) // 4)
    assert record.low == pytest.approx(0.025 ** (1 / 10))
    assert "10 groups" in record.method
    with pytest.raises(UsageError, match="clusters"):
        metric_record(LOG_LOSS, np.arange(3.0), clusters=np.arange(2))


@given(st.floats(0.001, 0.999), st.floats(-0.3, 0.3), st.floats(-0.1, 0.1), st.integers(5, 5000))
def test_tail_is_the_inverse_of_end(tail, bias, acceleration, units):
    drawn = np.sort(np.random.default_rng(0).normal(size=4000))
    found = Resampled(drawn, bias, acceleration, units, "")
    end = found.end(tail)
    if drawn[5] < end < drawn[-5]:
        assert found.tail(end) == pytest.approx(tail, abs=2e-3)
    student = Student(1.0, 0.2, 9, "")
    assert student.tail(student.end(tail)) == pytest.approx(tail)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 5))
def test_a_resample_has_as_many_units_and_keeps_clusters_whole(values, seed):
    rows = np.array(values, float)
    for weights in cells_of(rows).resamples(20, seed):
        assert (weights.sum(1) == len(rows)).all()
    clusters = np.arange(len(rows)) // 3
    cells = cells_of(rows, clusters)
    assert cells.counts.sum() == len(rows)
    for weights in cells.resamples(20, seed):
        drawn = weights / cells.counts
        for cluster in range(cells.units):
            part = drawn[:, cells.cluster == cluster]
            assert (part == part[:, :1]).all()


def test_resamples_are_as_varied_as_samples():
    cells = cells_of(np.random.default_rng(0).normal(size=50))
    weights = np.concatenate(list(cells.resamples(4000, 0)))
    assert weights.mean() == pytest.approx(1.0)
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.03)


def test_the_jackknife_gives_the_standard_error_of_a_mean():
    values = np.random.default_rng(3).normal(size=120_000)
    found = uncertainty(cells_of(values), LOG_LOSS.resampled)
    assert isinstance(found, Student)
    assert found.error == pytest.approx(values.std() / np.sqrt(len(values)), rel=0.2)
    assert found.value == pytest.approx(values.mean())


@pytest.mark.parametrize("heavy", [0.0, 5.0])
def test_parts_of_a_jackknife_are_of_samples_however_many_of_them_are_equal(heavy):
    draw = np.random.default_rng(0)
    values = np.where(draw.random(6000) < 0.5, heavy, draw.normal(size=6000))
    cells = cells_of(values)
    weights = np.concatenate([*cells.without(200, 0)])
    assert weights.shape == (200, len(cells.counts))
    assert set(weights.sum(1)) == {6000 - 30}
    assert (200 * cells.counts - weights.sum(0) == cells.counts).all()  # each sample is left out once


def test_tied_scores_have_an_interval_as_narrow_as_others():
    draw = np.random.default_rng(0)
    target = draw.integers(0, 2, 60_000)
    scores = np.maximum(draw.normal(size=60_000) + 2 * target - 1, 0)
    record = metric_record(AUROC, auroc_rows(torch.tensor(scores), torch.tensor(target)).numpy())
    assert record.low < record.value < record.high <= 1
    assert record.high - record.low < 0.02
