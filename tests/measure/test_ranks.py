"""AUROC and average precision against scikit-learn and all pairs."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from evalmode.errors import BatchError, UndefinedFigureError
from evalmode.measure.catalog import METRICS
from evalmode.measure.summary import metric_record

TIED = st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=60)


def figure(name, outputs, target):
    metric = METRICS[name]
    return metric.figure(metric.per_sample(outputs, target).numpy())


@given(TIED)
def test_auroc_counts_the_pairs_in_order(pairs):
    above = [score for positive, score in pairs if positive]
    below = [score for positive, score in pairs if not positive]
    assume(above and below)
    ordered = sum(Fraction((a > b) * 2 + (a == b), 2) for a in above for b in below)
    target = torch.tensor([positive for positive, _ in pairs]).long()
    scores = torch.tensor([score for _, score in pairs]).float()
    got = figure("AUROC", scores, target)
    assert got == float(ordered / (len(above) * len(below)))
    assert got == pytest.approx(roc_auc_score(target, scores))
    assert got == pytest.approx(1 - figure("AUROC", -scores, target))


@given(TIED)
def test_average_precision_is_that_of_scikit_learn(pairs):
    target = torch.tensor([positive for positive, _ in pairs]).long()
    assume(bool(target.any()))
    scores = torch.tensor([score for _, score in pairs]).float()
    expected = average_precision_score(target, scores)
    assert figure("average precision", scores, target) == pytest.approx(expected, rel=1e-12)


@given(st.integers(0, 1000), st.integers(3, 6), st.integers(10, 60))
def test_several_classes_are_each_against_the_rest(seed, classes, size):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (size,), generator=generator)
    there = target.unique()
    assume(len(there) > 1)
    shares = logits.softmax(1)
    each = [(target == label, shares[:, label]) for label in there]
    auroc = np.mean([roc_auc_score(*one) for one in each])
    precision = np.mean([average_precision_score(*one) for one in each])
    assert figure("AUROC", logits, target) == pytest.approx(auroc)
    assert figure("AUROC of probabilities", shares, target) == pytest.approx(auroc)
    assert figure("average precision", logits, target) == pytest.approx(precision)
    assert figure("average precision of probabilities", shares, target) == pytest.approx(precision)
    if len(there) == classes:
        oracle = roc_auc_score(target, shares, multi_class="ovr", average="macro")
        assert figure("AUROC", logits, target) == pytest.approx(oracle)


def test_two_class_scores_rank_by_their_difference():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(80, 2, generator=generator)
    target = torch.randint(0, 2, (80,), generator=generator)
    expected = roc_auc_score(target, logits.double().softmax(1)[:, 1])
    assert figure("AUROC", logits, target) == pytest.approx(expected)
    assert figure("AUROC of probabilities", logits.softmax(1), target) == pytest.approx(expected)
    # The softmax of these is 1 for both samples in float64, but one is surer.
    assert figure("AUROC", torch.tensor([[0.0, 50.0], [0.0, 60.0]]), torch.tensor([0, 1])) == 1.0


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_is_refused(label):
    target = torch.full((5,), label)
    with pytest.raises(UndefinedFigureError, match=f"targets are all of class {label}"):
        figure("AUROC", torch.arange(5.0), target)
    with pytest.raises(UndefinedFigureError):
        figure("AUROC", torch.randn(5, 3), target)
    if label:
        assert figure("average precision", torch.arange(5.0), target) == 1.0
    else:
        with pytest.raises(UndefinedFigureError):
            figure("average precision", torch.arange(5.0), target)


def test_a_class_outside_the_scores_is_refused():
    with pytest.raises(BatchError, match="class index is 3"):
        figure("AUROC", torch.randn(4, 3), torch.tensor([0, 1, 2, 3]))
    with pytest.raises(BatchError, match="class index is 2"):
        figure("AUROC", torch.randn(3), torch.tensor([0, 1, 2]))


def test_a_perfect_ranking_has_the_interval_of_disjoint_pairs():
    rows = np.stack([np.arange(50.0), np.arange(50) >= 40], axis=1)
    record = metric_record(METRICS["AUROC"], rows)
    assert (record.value, record.high) == (1.0, 1.0)
    assert record.low == pytest.approx(0.025 ** (1 / 10))
    assert record.method == "Clopper-Pearson of 10 trials (all resamples are alike)"


def test_resamples_without_a_class_are_told():
    rows = np.stack([np.random.default_rng(0).normal(size=30), np.arange(30) == 3], axis=1)
    assert "% of the resamples leave the figure undefined" in metric_record(METRICS["AUROC"], rows).method


def delong(scores, positive):
    """The standard error of DeLong, DeLong and Clarke-Pearson (1988)."""
    above, below = scores[positive], scores[~positive]
    ordered = (above[:, None] > below[None, :]) + 0.5 * (above[:, None] == below[None, :])
    first, second = ordered.mean(1), ordered.mean(0)
    return math.sqrt(first.var(ddof=1) / len(above) + second.var(ddof=1) / len(below))


@pytest.mark.parametrize("size", [400, 60_000])
def test_the_interval_is_as_wide_as_delongs(size):
    generator = np.random.default_rng(1)
    positive = generator.random(size) < 0.3
    scores = generator.normal(size=size) + positive
    record = metric_record(METRICS["AUROC"], np.stack([scores, positive], axis=1))
    few = slice(0, 4000)
    expected = delong(scores[few], positive[few]) * math.sqrt(min(size, 4000) / size)
    assert (record.high - record.low) / (2 * 1.96) == pytest.approx(expected, rel=0.15)
    assert ("jackknife" in record.method) == (size > 50_000)
