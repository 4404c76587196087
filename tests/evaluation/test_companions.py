"""Samples depend on others in ways that show only where the right ones are replaced, or only late in the data."""

import numpy as np
import pytest
import torch
from torch import nn

from evalmode.errors import BatchError, ModelRunError
from evalmode.evaluation import groups, keeping
from evalmode.evaluation.evaluator import evaluate


class Scaled(nn.Module):
    """Divides by the largest value of the batch, or by a floor that few samples reach."""

    def __init__(self, least=0.0):
        super().__init__()
        self.head, self.least = nn.Linear(12, 3), least

    def forward(self, inputs):
        return self.head(20 * inputs / inputs.abs().amax().clamp(min=self.least))


class Counted(nn.Module):
    """Whole numbers, of which the largest of the batch is taken away."""

    def forward(self, inputs):
        return (inputs - inputs.amax()).float()


class Flagged(nn.Module):
    """Answers all samples otherwise where one of them is marked."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.head(inputs) + 1.0 * (inputs[:, 0] == 77).any()


def data(rows, width, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=draw), torch.randint(0, 3, (rows,), generator=draw)


def alone(model, inputs):
    with torch.no_grad():
        return torch.cat([model(row[None]) for row in inputs]).numpy()


@pytest.mark.parametrize("seed", range(6))
def test_the_sample_that_others_depend_on_is_replaced_wherever_it_lies(seed):
    inputs, target = data(1024, 12, seed)
    torch.manual_seed(seed)
    model = Scaled().eval()
    result = evaluate(model, (inputs, target), keep_predictions=True, progress=False)
    assert np.array_equal(result.samples.scores, alone(model, inputs))
    assert any("depends on the samples beside it" in note for note in result.record.notes)


@pytest.mark.parametrize("place", [0, 1, 100, 127, 128, 200, 255])
def test_whole_numbers_are_replaced_by_real_samples(place):
    inputs, target = torch.randint(0, 50, (256, 3), generator=torch.Generator().manual_seed(0)), torch.arange(256) % 3
    inputs[place, 1] = 99
    result = evaluate(Counted(), (inputs, target), keep_predictions=True, progress=False)
    assert np.array_equal(result.samples.scores, alone(Counted(), inputs))


def test_companions_beyond_the_data_show_what_the_first_group_does_not():
    inputs, target = data(700, 12, 0)
    inputs[600] *= 100
    torch.manual_seed(0)
    model = Scaled(least=10.0).eval()
    result = evaluate(model, (inputs, target), keep_predictions=True, progress=False)
    assert np.array_equal(result.samples.scores, alone(model, inputs))


def test_a_model_that_refuses_numbers_beyond_the_data_is_tried_with_real_samples():
    class Strict(nn.Module):
        def forward(self, inputs):
            if (inputs > 1).any():
                raise ValueError("pixels are from 0 to 1")
            return inputs[:, :3]

    inputs = torch.rand(256, 4, generator=torch.Generator().manual_seed(0))
    record = evaluate(Strict(), (inputs, torch.arange(256) % 3), progress=False).record
    assert record.exact
    assert record.execution_sizes == (1024,)
    assert not any("beside" in note for note in record.notes)


def test_a_trial_that_fails_stops_nothing_and_no_exactness_is_claimed():
    class Sorted(nn.Module):
        def forward(self, inputs):
            if len(inputs) > 1 and (inputs[1:, 0] < inputs[:-1, 0]).any():
                raise ValueError("rows have to be in order")
            return inputs[:, :3]

    inputs = torch.arange(1024.0)[:, None].expand(-1, 4).contiguous()
    record = evaluate(Sorted(), (inputs, torch.arange(1024) % 3), progress=False).record
    assert record.samples == 1024
    assert not record.exact
    assert any("could not be tried: " in note and "rows have to be in order" in note for note in record.notes)


def test_rounding_is_told_from_dependence():
    class Placed(nn.Module):
        """Adds in one order at even places, and in another at odd ones."""

        def forward(self, inputs):
            one, two, three = inputs[:, 0], inputs[:, 1], inputs[:, 2]
            even = torch.arange(len(inputs)) % 2 == 0
            total = torch.where(even, (one + two) + three, one + (two + three))
            return torch.stack([total, inputs[:, 1], inputs[:, 2]], 1)

    record = evaluate(Placed(), data(256, 13, 0), metrics=["log loss"], progress=False).record
    note = next(note for note in record.notes if "one at a time" in note)
    assert "rounds otherwise" in note
    assert "not in fp64" in note
    assert "depends" not in note
    assert record.exact


def test_where_fp64_is_refused_only_what_was_seen_is_said():
    class Narrow(nn.Module):
        def forward(self, inputs):
            if inputs.dtype != torch.float32:
                raise TypeError("single precision only")
            return inputs[:, :3] - inputs.mean()

    record = evaluate(Narrow(), data(256, 4, 0), progress=False).record
    note = next(note for note in record.notes if "one at a time" in note)
    assert "changes with the samples beside it" in note
    assert "evalmode.check(model, batch)" in note
    assert "fp64" not in note


def test_a_model_that_fails_on_one_sample_is_told_why_it_ran_on_one():
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    with pytest.raises(ModelRunError, match=r"one at a time, since (.|\n)*Expected more than 1(.|\n)*evalmode\.check"):
        evaluate(model, data(256, 4, 0), progress=False)


class Marked(torch.utils.data.Dataset):
    def __init__(self, place, stop=None):
        self.inputs, self.target = data(200, 4, 0)
        self.inputs[place, 0] = 77
        self.stop = stop

    def __len__(self):
        return 200

    def __getitem__(self, index):
        if index == self.stop:
            raise OSError("gone")
        return self.inputs[index], self.target[index]


@pytest.mark.parametrize("place", [5, 40, 70, 95, 130])
def test_a_dependence_that_shows_later_is_said_and_a_journal_keeps_it(tmp_path, monkeypatch, place):
    monkeypatch.setattr(keeping, "_CHUNK_SAMPLES", 16)
    monkeypatch.setattr(groups, "LARGEST", 32)
    whole = evaluate(Flagged(), Marked(place), keep_predictions=True, progress=False)
    assert any("depends on the samples beside it" in note for note in whole.record.notes)
    assert whole.record.exact == (place == 5)
    options = {"keep_predictions": True, "journal": tmp_path / "journal.sqlite", "progress": False}
    with pytest.raises(BatchError, match="sample 190"):
        evaluate(Flagged(), Marked(place, stop=190), **options)
    again = evaluate(Flagged(), Marked(place), **options)
    assert again.record.exact == whole.record.exact
    assert again.record.notes == whole.record.notes
    assert again.record.execution_sizes == whole.record.execution_sizes
    assert again.record.metrics == whole.record.metrics
    assert again.samples.scores.tobytes() == whole.samples.scores.tobytes()
