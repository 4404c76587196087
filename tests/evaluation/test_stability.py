"""Whether a sample's answer depends on its companions, or on nothing that can be named, is seen in every shape."""

import numpy as np
import pytest
import torch
from torch import nn

from evalmode.evaluation.evaluator import evaluate
from evalmode.evaluation.running import ModuleRunner

DRAW = torch.Generator().manual_seed(0)


class Centred(nn.Module):
    """Takes the mean of the whole batch away."""

    def forward(self, images):
        pooled = images.flatten(2).mean(2)
        return pooled - pooled.mean()


def images(count, side):
    return [(torch.randn(3, side, side, generator=DRAW), place % 3) for place in range(count)]


def test_companions_are_tested_for_every_shape_whatever_came_first():
    large, small = images(1, 640), images(300, 16)
    first = evaluate(Centred(), large + small, keep_predictions=True, progress=False)
    last = evaluate(Centred(), small + large, keep_predictions=True, progress=False)
    alone = torch.cat([Centred()(image[None]) for image, _ in small]).numpy()
    assert np.array_equal(first.samples.scores[1:], alone)
    assert np.array_equal(last.samples.scores[:-1], alone)
    assert first.record.execution_sizes == last.record.execution_sizes == (1,)
    assert any("one at a time" in note for note in first.record.notes)
    assert first.record.exact


@pytest.mark.parametrize("rows", [2, 256])
def test_companions_are_seen_in_a_group_that_is_filled_up_with_its_samples(rows):
    class Sums(nn.Module):
        def forward(self, inputs):
            return inputs + inputs.sum(0)

    values = torch.randint(0, 9, (rows, 3), generator=DRAW).float()  # sums of whole numbers have no rounding
    result = evaluate(Sums(), (values, torch.arange(rows) % 3), keep_predictions=True, progress=False)
    assert np.array_equal(result.samples.scores, 2 * values)
    assert any("one at a time" in note for note in result.record.notes)


class Drawing(nn.Module):
    """Answers whole numbers, which noise changes for some samples only."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, inputs):
        scores = self.head(inputs)
        return (scores + 0.02 * torch.randn_like(scores)).argmax(1)


@pytest.mark.parametrize("seed", range(5))
def test_rare_random_answers_are_not_exact_and_companions_are_not_blamed(seed):
    torch.manual_seed(seed)
    record = evaluate(Drawing(), (torch.randn(900, 3), torch.arange(900) % 3), progress=False).record
    assert not record.exact
    assert any("not the same twice" in note for note in record.notes)
    assert not any("beside it" in note for note in record.notes)
    assert record.execution_sizes != (1,)


def test_a_random_answer_is_seen_where_every_sample_runs_alone():
    class Noisy(nn.Module):
        def forward(self, inputs):
            return inputs.mean((2, 3)) + 0.1 * torch.randn(len(inputs), 3)

    record = evaluate(Noisy(), images(3, 640), progress=False).record
    assert record.execution_sizes == (1,)
    assert not record.exact


def test_a_stable_model_runs_twice_more_for_each_shape_only():
    calls = []
    runner = ModuleRunner(
        lambda inputs: calls.append(len(inputs)) or inputs, torch.device("cpu"), None, whole=False, named=False
    )
    for width in (2, 2, 3, 3, 3):
        runner.outputs(torch.randn(8, width))
    assert len(calls) == 9
    assert runner.exact
