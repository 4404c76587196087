"""Reliability diagrams and confusion matrices against scikit-learn and the ECE."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from evalmode.errors import UsageError
from evalmode.measure.calibration import calibration_bins
from evalmode.measure.catalog import METRICS
from evalmode.measure.confusion import confusion
from evalmode.measure.summary import metric_record


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(1, 80))
def test_bins_hold_every_sample_and_make_the_ece(seed, classes, size):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (size,), generator=generator)
    bins = calibration_bins(logits.numpy(), target.numpy())
    assert (len(bins), sum(part.count for part in bins)) == (15, size)
    gap = sum(part.count * abs(part.confidence - part.accuracy) for part in bins if part.count) / size
    metric = METRICS["ECE"]
    assert gap == pytest.approx(metric.figure(metric.per_sample(logits, target).numpy()))
    assert all(part.confidence is None and part.accuracy is None for part in bins if not part.count)
    assert all(part.low - 1e-12 <= part.confidence <= part.high + 1e-12 for part in bins if part.count)
    same = calibration_bins(logits.softmax(1).numpy(), target.numpy())
    assert [part.count for part in same] == [part.count for part in bins]


def test_one_score_per_sample_is_that_of_class_1():
    bins = calibration_bins(np.array([[0.1], [0.9], [0.95]]), np.array([0, 1, 0]), bins=2)
    assert (bins[1].count, bins[1].accuracy) == (2, 0.5)
    assert calibration_bins(np.array([-2.0, 3.0]), np.array([0, 1]), bins=2)[1].accuracy == 1.0


@pytest.mark.parametrize(
    ("scores", "target"),
    [
        (np.zeros((3, 2)), np.zeros(2)),
        (np.zeros((0, 2)), np.zeros(0)),
        (np.zeros((2, 2)), np.array([0, 2])),
        (np.zeros((2, 2)), np.array([0, 0.5])),
        (np.full((2, 2), np.nan), np.array([0, 1])),
        (np.full((2, 2), -np.inf), np.array([0, 1])),
    ],
)
def test_scores_that_do_not_fit_are_refused(scores, target):
    with pytest.raises(UsageError, match="calibration"):
        calibration_bins(scores, target)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60))
def test_confusion_is_that_of_scikit_learn(pairs):
    target, prediction = np.array(pairs).T
    found = confusion(prediction, target)
    known = max(target.max(), prediction.max()) + 1
    # One label more: scikit-learn warns of a single one.
    expected = confusion_matrix(target, prediction, labels=range(known + 1))[:known, :known]
    assert np.array_equal(found.counts, expected)
    named = confusion(prediction, target, labels=list("abcdef"))
    assert named.labels == tuple("abcdef")
    assert np.array_equal(named.counts, confusion_matrix(target, prediction, labels=range(6)))


@pytest.mark.parametrize(
    ("prediction", "target", "labels"),
    [([0], [0, 1], None), ([], [], None), ([-1], [0], None), ([0.5], [0], None), ([2], [0], ["a", "b"])],
)
def test_classes_that_do_not_fit_are_refused(prediction, target, labels):
    with pytest.raises(UsageError, match="confusion"):
        confusion(np.array(prediction), np.array(target), labels)


def test_the_interval_of_a_biased_figure_says_so():
    """Calibrated by construction, and yet its ECE is far above 0: what the interval is around is not the truth."""
    generator = np.random.default_rng(5)
    shares = generator.random(200)
    rows = np.stack([shares, (generator.random(200) < shares).astype(float)], axis=1)
    record = metric_record(METRICS["binary ECE"], rows)
    assert record.low > 0 and record.method == "BCa bootstrap; ECE is biased upwards, and so is its interval"
    alone = metric_record(METRICS["binary ECE"], rows[:1])
    assert alone.low is None and "biased" not in alone.method
