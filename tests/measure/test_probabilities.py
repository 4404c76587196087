"""Brier score, ECE and log loss against scikit-learn and brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.metrics import brier_score_loss, log_loss

from evalmode.errors import BatchError
from evalmode.measure.catalog import METRICS
from evalmode.measure.expected_calibration_error import in_bins


def figure(name, outputs, target):
    metric = METRICS[name]
    return metric.figure(metric.per_sample(outputs, target).numpy())


def brute_ece(confidence, right, bins=15):
    total = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if number == 0:
            inside |= confidence == 0
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 60))
def test_class_scores(seed, classes, size):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size, classes, generator=generator)
    target = torch.randint(0, classes, (size,), generator=generator)
    shares = softmax(logits.double().numpy(), axis=1)
    labels = range(classes)
    brier = brier_score_loss(target, shares if classes > 2 else shares[:, 1], labels=labels, scale_by_half=False)
    ece = brute_ece(shares.max(1), shares.argmax(1) == target.numpy())
    for suffix, outputs in (("", logits), (" of probabilities", torch.from_numpy(shares))):
        assert figure("Brier score" + suffix, outputs, target) == pytest.approx(brier)
        assert figure("ECE" + suffix, outputs, target) == pytest.approx(ece)
        expected = log_loss(target, shares, labels=labels)
        assert figure("log loss" + suffix, outputs, target) == pytest.approx(expected)


@given(st.integers(0, 1000), st.integers(1, 60))
def test_one_logit(seed, size):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, generator=generator)
    target = torch.randint(0, 2, (size,), generator=generator)
    shares = expit(logits.double().numpy())
    for suffix, outputs in (("", logits), (" of probabilities", torch.from_numpy(shares))):
        expected = brier_score_loss(target, shares, pos_label=1, labels=[0, 1])
        assert figure("binary Brier score" + suffix, outputs, target) == pytest.approx(expected)
        assert figure("binary ECE" + suffix, outputs, target) == pytest.approx(brute_ece(shares, target.numpy()))
        expected = log_loss(target, shares, labels=[0, 1])
        assert figure("binary log loss" + suffix, outputs, target) == pytest.approx(expected)


def test_two_class_scores_give_twice_the_binary_brier_score():
    logits, target = torch.tensor([[0.3, -0.5], [1.0, 2.0]], dtype=torch.float64), torch.tensor([1, 0])
    binary = figure("binary Brier score", logits[:, 1] - logits[:, 0], target)
    assert figure("Brier score", logits, target) == pytest.approx(2 * binary)


@given(st.floats(0, 1), st.integers(1, 30))
def test_a_bin_holds_what_lies_above_its_lower_edge_up_to_its_upper_one(confidence, bins):
    number = int(in_bins(np.array([confidence]), bins)[0])
    assert 0 <= number < bins
    assert confidence <= (number + 1) / bins
    assert confidence > number / bins or number == 0


def test_sure_and_wrong_is_infinite_and_said_as_such():
    assert figure("binary log loss of probabilities", torch.tensor([1.0]), torch.tensor([0])) == math.inf
    assert figure("binary log loss of probabilities", torch.tensor([1.0, 0.0]), torch.tensor([1, 0])) == 0.0


def test_extreme_logits_stay_numbers():
    logits, target = torch.tensor([1e4, -1e4, 0.0]), torch.tensor([0, 1, 1])
    assert figure("binary Brier score", logits, target) == pytest.approx((1 + 1 + 0.25) / 3)
    assert figure("binary log loss", logits, target) == pytest.approx((2e4 + math.log(2)) / 3)
    wide = torch.tensor([[1e4, -1e4], [-1e4, -torch.inf]])
    assert figure("Brier score", wide, torch.tensor([1, 0])) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["Brier score", "ECE", "AUROC", "log loss"])
def test_what_are_no_probabilities_names_the_metric_of_logits(name):
    with pytest.raises(BatchError) as caught:
        figure(f"{name} of probabilities", torch.tensor([[0.2, 0.9, 0.3]]), torch.tensor([1]))
    assert f"['{name}']" in str(caught.value)
    with pytest.raises(BatchError, match="Inf"):
        figure(name, torch.tensor([[math.inf, 0.0, 0.0]]), torch.tensor([1]))
