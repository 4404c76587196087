"""The figure that a certificate keeps."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalmode.errors import UsageError
from evalmode.measure.accuracy import ACCURACY
from evalmode.measure.intervals import mean_interval
from evalmode.measure.log_loss import LOG_LOSS
from evalmode.measure.metric import metric_of
from evalmode.measure.root_mean_squared_error import ROOT_MEAN_SQUARED_ERROR
from evalmode.measure.summary import metric_record


def test_a_proportion_keeps_its_counts():
    record = metric_record(ACCURACY, np.array([True] * 539 + [False]))
    assert (record.value, record.count, record.total) == (539 / 540, 539, 540)
    assert (round(100 * record.low, 1), round(100 * record.high, 1)) == (99.0, 100.0)
    assert (record.method, record.confidence) == ("Clopper-Pearson", 0.95)


def test_a_mean_keeps_no_count():
    record = metric_record(LOG_LOSS, np.array([0.5, 1.0, 3.0]), 0.9)
    assert (record.value, record.count, record.total, record.confidence) == (1.5, None, 3, 0.9)
    assert record.low < 1.5 < record.high


def test_a_root_mean_has_the_root_of_the_means_interval():
    values = np.random.default_rng(0).exponential(size=30)
    record, inner = metric_record(ROOT_MEAN_SQUARED_ERROR, values), mean_interval(values)
    assert record.value == pytest.approx(math.sqrt(values.mean()), rel=1e-15)
    assert (record.low, record.high) == (math.sqrt(inner.low), math.sqrt(inner.high))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(0, 1e9), min_size=1, max_size=30),
    st.sampled_from([LOG_LOSS, ROOT_MEAN_SQUARED_ERROR]),
    st.randoms(use_true_random=False),
)
def test_the_whole_record_has_the_same_bits_in_any_order(values, metric, shuffle):
    other = shuffle.sample(values, len(values))
    assert metric_record(metric, np.array(values)) == metric_record(metric, np.array(other))


def test_what_a_users_function_gave_is_a_proportion_or_a_mean():
    solved = np.array([True, False, True])
    assert metric_record(metric_of("solved", solved), solved).count == 2
    cost = np.array([1.0, 2.0])
    assert metric_record(metric_of("cost", cost), cost).value == 1.5
    assert metric_of("solved", solved).higher_is_better is None  # nor does a share say whether true is good
    assert metric_of("cost", cost).higher_is_better is None


def test_no_samples_no_figure():
    with pytest.raises(UsageError, match="of no samples"):
        metric_record(ACCURACY, np.array([], dtype=bool))
