"""Figures of tokens against torch over all tokens."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from evalmode.errors import BatchError, UndefinedFigureError
from evalmode.measure.catalog import METRICS
from evalmode.measure.token_loss import token_loss_rows

NAMES = ["token loss", "perplexity", "token accuracy"]


def figure(name, outputs, target):
    metric = METRICS[name]
    return metric.figure(metric.per_sample(outputs, target).numpy())


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 300), st.integers(2, 7))
def test_every_token_weighs_the_same(seed, size, length, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size, length, classes, generator=generator)
    target = torch.randint(0, classes, (size, length), generator=generator)
    target[torch.rand(size, length, generator=generator) < 0.4] = -100
    kept = target != -100
    assume(bool(kept.any()))
    loss = torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), target.flatten()).item()
    assert figure("token loss", logits, target) == pytest.approx(loss)
    assert figure("perplexity", logits, target) == pytest.approx(math.exp(loss))
    right = (logits.argmax(2) == target)[kept].double().mean().item()
    assert figure("token accuracy", logits, target) == pytest.approx(right)


@given(st.integers(0, 1000), st.integers(1, 40))
def test_padding_changes_no_bit(seed, padding):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 17, 5, generator=generator)
    target = torch.randint(0, 5, (3, 17), generator=generator)
    longer = torch.cat([logits, torch.full((3, padding, 5), torch.nan)], dim=1)
    labels = torch.cat([target, torch.full((3, padding), -100)], dim=1)
    for name in NAMES:
        assert torch.equal(METRICS[name].per_sample(logits, target), METRICS[name].per_sample(longer, labels))


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_without_tokens_adds_nothing_and_none_at_all_is_refused(name):
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[0, 1, 2], [-100, -100, -100]])
    assert figure(name, logits, target) == figure(name, logits[:1], target[:1])
    with pytest.raises(UndefinedFigureError, match="no token counts"):
        figure(name, logits[1:], target[1:])


@pytest.mark.parametrize(
    ("outputs", "target", "words"),
    [
        (torch.zeros(2, 4, 3), torch.zeros(2, 3).long(), "transpose"),
        (torch.zeros(2, 3), torch.zeros(2, 3).long(), "the classes last"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3), "whole numbers"),
        (torch.zeros(1, 2, 4), torch.tensor([[0, 4]]), "from 0 to 3"),
        (torch.zeros(1, 2, 4), torch.tensor([[0, -1]]), "the token is -1"),
    ],
)
def test_what_does_not_fit_is_refused(outputs, target, words):
    with pytest.raises(BatchError) as caught:
        figure("token loss", outputs, target)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int64])
def test_targets_of_few_bits_are_the_classes_that_they_say(kind):
    most = min(torch.iinfo(kind).max, 199)
    target = torch.tensor([[1, most, 7]]).to(kind)
    rows = token_loss_rows(torch.zeros(1, 3, 256), target)
    assert rows[0, 1] == 3
    assert torch.equal(rows, token_loss_rows(torch.zeros(1, 3, 256), target.long()))
    assert token_loss_rows(torch.zeros(1, 3, 200), torch.tensor([[1, 156, 7]], dtype=torch.uint8))[0, 1] == 3
