"""Figures of decisions against scikit-learn."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, top_k_accuracy_score

from evalmode.errors import BatchError
from evalmode.measure.catalog import METRICS, metric_named
from evalmode.measure.summary import metric_record

ANSWERS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def figure(name, outputs, target):
    metric = METRICS[name]
    return metric.figure(metric.per_sample(outputs, target).numpy())


def quietly(oracle, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of absent classes
        return oracle(*arguments, **options)


@given(ANSWERS)
def test_class_indices_are_measured_as_scikit_learn_does(pairs):
    target, answer = torch.tensor(pairs).T
    assert figure("balanced accuracy", answer, target) == pytest.approx(
        quietly(balanced_accuracy_score, target, answer), rel=1e-12
    )
    for average in ("macro", "micro", "weighted"):
        expected = quietly(f1_score, target, answer, average=average)
        assert figure(f"{average} F1", answer, target) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.floats(-3, 3)), min_size=1, max_size=50))
def test_one_logit_per_sample_is_positive_above_zero(pairs):
    target = torch.tensor([positive for positive, _ in pairs]).long()
    logits = torch.tensor([logit for _, logit in pairs], dtype=torch.float64)
    answer = logits > 0
    assert figure("binary F1", logits, target) == pytest.approx(quietly(f1_score, target, answer, zero_division=0.0))
    expected = quietly(balanced_accuracy_score, target, answer)
    assert figure("binary balanced accuracy", logits[:, None], target) == pytest.approx(expected)
    assert figure("binary accuracy", logits, target) == accuracy_score(target, answer)
    shares = logits.sigmoid()
    answer = shares > 0.5
    for name, oracle in (
        ("F1", f1_score),
        ("balanced accuracy", balanced_accuracy_score),
        ("accuracy", accuracy_score),
    ):
        expected = quietly(oracle, target, answer)
        assert figure(f"binary {name} of probabilities", shares, target) == pytest.approx(expected)


def test_two_class_scores_and_indices_give_the_same_binary_f1():
    scores = torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.3, 0.7]])
    target = torch.tensor([1, 1, 0])
    assert figure("binary F1", scores, target) == figure("binary F1", scores.argmax(1), target) == 0.5


def test_binary_f1_without_a_positive_is_0():
    assert figure("binary F1", torch.tensor([-1.0, -2.0]), torch.tensor([0, 0])) == 0.0


def test_binary_f1_of_many_classes_names_the_macro_one():
    with pytest.raises(BatchError) as caught:
        figure("binary F1", torch.zeros(2, 3), torch.tensor([0, 1]))
    assert "macro F1" in str(caught.value)


def test_probabilities_out_of_range_name_the_metric_of_logits():
    with pytest.raises(BatchError) as caught:
        figure("binary F1 of probabilities", torch.tensor([0.2, 1.7]), torch.tensor([0, 1]))
    assert "['binary F1']" in str(caught.value)


@given(st.integers(1, 6), st.integers(0, 100))
def test_top_k_is_that_of_scikit_learn(k, seed):
    generator = torch.Generator().manual_seed(seed)
    scores, target = torch.randn(40, 5, generator=generator), torch.randint(0, 5, (40,), generator=generator)
    metric = metric_named(f"top {k} accuracy")
    expected = quietly(top_k_accuracy_score, target, scores, k=k, labels=range(5)) if k < 5 else 1.0
    assert metric.figure(metric.per_sample(scores, target).numpy()) == pytest.approx(expected)


def test_top_1_is_accuracy_and_k_classes_count_where_scores_tie():
    scores = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 0.0]])
    for target in ([0, 0], [1, 1], [2, 2]):
        labels = torch.tensor(target)
        top = metric_named("top 1 accuracy").per_sample(scores, labels)
        assert torch.equal(top, METRICS["accuracy"].per_sample(scores, labels))
    counted = [metric_named("top 2 accuracy").per_sample(scores, torch.tensor([c, c])).tolist() for c in range(3)]
    assert np.sum(counted, axis=0).tolist() == [2, 2]


def test_all_right_has_the_mean_of_exact_bounds():
    rows = np.repeat([[0.0, 0.0], [1.0, 1.0]], [30, 10], axis=0)
    record = metric_record(METRICS["balanced accuracy"], rows)
    # Each class at 97.5 %: all of n right leaves shares down to (0.0125)^(1/n).
    assert record.low == pytest.approx((0.0125 ** (1 / 30) + 0.0125 ** (1 / 10)) / 2)
    assert record.high == 1.0
    assert record.method == "Clopper-Pearson of 30/10 trials (all resamples are alike)"
    assert "gives the same figure" in metric_record(METRICS["macro F1"], rows).method
