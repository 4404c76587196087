"""Log loss against scikit-learn, and its own invariances."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from evalmode.errors import BatchError
from evalmode.measure.log_loss import (
    binary_log_loss_per_sample,
    log_loss_of_probabilities_per_sample,
    log_loss_per_sample,
)

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed, samples, classes, scale=3.0):
    random = np.random.default_rng(seed)
    return scale * random.standard_normal((samples, classes)), random.integers(0, classes, samples)


@given(SEEDS, st.integers(1, 30), st.integers(2, 8))
def test_agrees_with_scikit_learn(seed, samples, classes):
    logits, target = drawn(seed, samples, classes)
    expected = log_loss(target, softmax(logits, axis=1), labels=range(classes))
    ours = log_loss_per_sample(torch.tensor(logits), torch.tensor(target))
    assert ours.dtype is torch.float64
    assert ours.mean().item() == pytest.approx(expected, rel=1e-12)
    told = log_loss_of_probabilities_per_sample(torch.tensor(softmax(logits, axis=1)), torch.tensor(target))
    assert told.mean().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_logits_are_widened_first(dtype):
    logits = (torch.randn(50, 7, generator=torch.Generator().manual_seed(1)) * 20).to(dtype)
    target = torch.arange(50) % 7
    expected = -log_softmax(logits.double().numpy(), axis=1)[np.arange(50), target.numpy()]
    np.testing.assert_allclose(log_loss_per_sample(logits, target).numpy(), expected, rtol=1e-13, atol=1e-13)


def test_large_logits_neither_overflow_nor_lose_the_tail():
    logits = torch.tensor([[1e30, 0.0], [0.0, 40.0]])
    assert log_loss_per_sample(logits, torch.tensor([0, 1])).tolist() == [0.0, pytest.approx(math.exp(-40), rel=1e-6)]


@given(SEEDS, st.integers(1, 40), st.integers(2, 40), st.integers(1, 7))
def test_a_sample_has_the_same_bits_in_any_batch(seed, samples, classes, size):
    logits, target = (torch.tensor(part) for part in drawn(seed, samples, classes))
    whole = log_loss_per_sample(logits, target)
    parts = [log_loss_per_sample(a, b) for a, b in zip(logits.split(size), target.split(size), strict=True)]
    assert torch.equal(whole, torch.cat(parts))
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed % 1000))
    assert torch.equal(whole[order], log_loss_per_sample(logits[order], target[order]))
    transposed = logits.t().contiguous().t()
    assert torch.equal(whole, log_loss_per_sample(transposed, target))


@given(st.lists(st.tuples(st.floats(-30, 30), st.booleans()), min_size=1, max_size=30))
def test_binary_is_log_loss_with_a_second_logit_of_zero(pairs):
    logits = torch.tensor([pair[0] for pair in pairs], dtype=torch.float64)
    target = torch.tensor([pair[1] for pair in pairs])
    expected = log_loss_per_sample(torch.stack([torch.zeros_like(logits), logits], 1), target)
    ours = binary_log_loss_per_sample(logits[:, None], target[:, None])
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


def test_probability_zero_of_the_right_class_is_infinite_and_not_clipped():
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert log_loss_of_probabilities_per_sample(rows, torch.tensor([0, 0])).tolist() == [math.inf, 0.0]
    masked = torch.tensor([[-torch.inf, 0.0]])
    assert log_loss_per_sample(masked, torch.tensor([0])).tolist() == [math.inf]


@pytest.mark.parametrize("bad", [[torch.inf, 0.0], [-torch.inf, -torch.inf]])
def test_logits_without_a_distribution_are_refused(bad):
    with pytest.raises(BatchError, match="leave no probabilities"):
        log_loss_per_sample(torch.tensor([[0.0, 0.0], bad]), torch.tensor([0, 0]))


@pytest.mark.parametrize("rows", [[[0.5, 0.6]], [[-0.1, 1.1]], [[2.0, 3.0]]])
def test_what_is_no_distribution_is_refused(rows):
    with pytest.raises(BatchError, match="no probabilities"):
        log_loss_of_probabilities_per_sample(torch.tensor(rows), torch.tensor([0]))
