"""Accuracy against scikit-learn and numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from evalmode.errors import BatchError
from evalmode.measure.accuracy import accuracy_per_sample, binary_accuracy_per_sample


@given(st.integers(1, 40), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_agrees_with_scikit_learn_and_with_numpy_argmax(samples, classes, seed):
    random = np.random.default_rng(seed)
    scores, target = random.standard_normal((samples, classes)), random.integers(0, classes, samples)
    right = accuracy_per_sample(torch.tensor(scores), torch.tensor(target))
    assert right.dtype is torch.bool
    assert right.tolist() == (scores.argmax(1) == target).tolist()
    assert right.double().mean().item() == pytest.approx(accuracy_score(target, scores.argmax(1)), abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_takes_every_floating_dtype(dtype):
    scores = torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=dtype)
    assert accuracy_per_sample(scores, torch.tensor([1, 1])).tolist() == [True, False]


def test_takes_class_indices_as_answers():
    assert accuracy_per_sample(torch.tensor([3, 0, 2]), torch.tensor([3, 1, 2])).tolist() == [True, False, True]
    assert accuracy_per_sample(torch.tensor([True, False]), torch.tensor([1, 1])).tolist() == [True, False]


def test_takes_a_column_of_targets_and_whole_floats():
    scores = torch.eye(3)
    assert accuracy_per_sample(scores, torch.tensor([[0], [1], [1]])).tolist() == [True, True, False]
    assert accuracy_per_sample(scores, torch.tensor([0.0, 1.0, 1.0])).tolist() == [True, True, False]


def test_a_class_ruled_out_by_minus_infinity_is_never_the_answer():
    scores = torch.tensor([[-torch.inf, -5.0]])
    assert accuracy_per_sample(scores, torch.tensor([1])).tolist() == [True]


@given(st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=1, max_size=30))
def test_binary_agrees_with_scikit_learn(pairs):
    logits, target = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    for shape in ((-1,), (-1, 1)):
        right = binary_accuracy_per_sample(torch.tensor(logits).view(shape), torch.tensor(target).view(shape))
        assert right.double().mean().item() == pytest.approx(accuracy_score(target, logits > 0), abs=1e-15)


@pytest.mark.parametrize(
    ("outputs", "target", "words"),
    [
        (torch.zeros(3, 4), torch.tensor([0, 1]), "3 outputs"),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), "0 outputs"),
        (torch.zeros(()), torch.tensor([0]), "None outputs"),
        (torch.zeros(2, 4), torch.tensor([0, 4]), "class index is 4 in 1 of 2 samples (first: 1)"),
        (torch.zeros(2, 4), torch.tensor([-100, 1]), "class index is -100"),
        (torch.zeros(2, 4), torch.tensor([0.0, 0.5]), "no whole number in 1 of 2 samples"),
        (torch.zeros(2, 4), torch.zeros(2, 4), "the target has shape (2, 4)"),
        (torch.zeros(2, 4, 5), torch.tensor([0, 1]), "the outputs have shape (2, 4, 5)"),
        (torch.zeros(2, 1), torch.tensor([0, 1]), "the outputs have shape (2, 1)"),
        (torch.tensor([[0.0, torch.nan], [1.0, 2.0]]), torch.tensor([0, 1]), "NaN in 1 of 2 samples (first: 0)"),
    ],
)
def test_what_does_not_fit_is_said(outputs, target, words):
    with pytest.raises(BatchError) as caught:
        accuracy_per_sample(outputs, target)
    assert words in caught.value.got
    assert caught.value.expected
    assert caught.value.fix


def test_binary_targets_are_0_and_1():
    with pytest.raises(BatchError, match="class index is 2"):
        binary_accuracy_per_sample(torch.zeros(2), torch.tensor([1, 2]))
    with pytest.raises(BatchError, match="NaN"):
        binary_accuracy_per_sample(torch.tensor([torch.nan, 1.0]), torch.tensor([1, 0]))
