"""IoU and Dice against scikit-learn over all places."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score

from evalmode.errors import BatchError, UndefinedFigureError
from evalmode.measure.catalog import METRICS, metric_named


def figure(name, outputs, target):
    metric = metric_named(name)
    return metric.figure(metric.per_sample(outputs, target).numpy())


def oracle(score, answer, target, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return score(target, answer, **options)


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(1, 5), st.sampled_from([-100, 255, None]))
def test_are_those_of_scikit_learn_over_all_places(seed, classes, size, ignored):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, classes, 4, 3, generator=generator)
    target = torch.randint(0, classes, (size, 4, 3), generator=generator)
    if ignored is not None:
        target[torch.rand(size, 4, 3, generator=generator) < 0.2] = ignored
    kept = ((target >= 0) & (target < classes)).flatten()
    answer, want = scores.argmax(1).flatten()[kept].numpy(), target.flatten()[kept].numpy()
    for name, score in (("mean IoU", jaccard_score), ("Dice", f1_score)):
        expected = oracle(score, answer, want, average="macro")  # over the classes that occur in either
        assert figure(name, scores, target) == pytest.approx(expected)
        assert figure(f"{name} of {classes} classes", scores.argmax(1), target) == pytest.approx(expected)
        assert figure(name, scores, target[:, None]) == pytest.approx(expected)


@given(st.integers(0, 1000), st.integers(1, 5))
def test_the_foreground_of_two_classes(seed, size):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, 1, 4, 3, generator=generator)
    target = torch.randint(0, 2, (size, 4, 3), generator=generator)
    answer, want = (logits > 0).flatten().numpy(), target.flatten().numpy()
    for name, score in (("binary IoU", jaccard_score), ("binary Dice", f1_score)):
        expected = oracle(score, answer, want)
        both = torch.cat([-logits, logits], dim=1)
        for outputs in (logits, logits[:, 0], both, logits[:, 0] > 0, (logits > 0).long()):
            assert figure(name, outputs, target) == pytest.approx(expected)


def test_an_absent_class_is_left_out():
    target = torch.tensor([[0, 0, 1, 1]])
    answer = torch.tensor([[0, 1, 1, 1]])
    assert figure("mean IoU of 9 classes", answer, target) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_areas_are_pooled_over_samples():
    target = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    answer = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
    assert figure("binary IoU", answer, target) == 4 / 5  # the mean over images would be 1/2


def test_nothing_to_count_is_refused():
    ignored = torch.full((2, 3), 255)
    with pytest.raises(UndefinedFigureError, match="no place counts"):
        figure("mean IoU", torch.zeros(2, 3).long(), ignored)
    with pytest.raises(UndefinedFigureError, match="class 1 is in no target"):
        figure("binary Dice", torch.zeros(2, 3).long(), torch.zeros(2, 3).long())


def test_255_is_a_class_where_there_are_as_many():
    target = torch.tensor([[255, 3]])
    assert figure("mean IoU of 256 classes", target, target) == 1.0
    assert METRICS["mean IoU"].per_sample(torch.zeros(1, 256, 2), target).sum() > 0


@pytest.mark.parametrize(
    ("outputs", "target", "words"),
    [
        (torch.tensor([[0, 2]]), torch.tensor([[0, 1]]), "mean IoU of 3 classes"),
        (torch.tensor([[0, 1]]), torch.tensor([[0, 4]]), "mean IoU of 5 classes"),
        (torch.zeros(1, 3, 2), torch.tensor([[0, 7]]), "from 0 to 2"),
        (torch.tensor([[0, 1]]), torch.tensor([[-1, 1]]), "from 0 to 1"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), "a class index for every place"),
        (torch.zeros(1, 3, 5), torch.zeros(1, 4).long(), "class scores of shape"),
        (torch.zeros(1, 3, 4), torch.full((1, 4), 0.5), "not whole"),
    ],
)
def test_what_does_not_fit_is_refused(outputs, target, words):
    with pytest.raises(BatchError) as caught:
        figure("mean IoU", outputs, target)
    assert words in str(caught.value)


def test_scores_of_another_number_of_classes_are_refused():
    with pytest.raises(BatchError, match="scores of 3 classes"):
        figure("Dice of 4 classes", torch.zeros(1, 3, 2), torch.zeros(1, 2).long())
    assert np.isfinite(figure("Dice of 3 classes", torch.zeros(1, 3, 2), torch.zeros(1, 2).long()))
