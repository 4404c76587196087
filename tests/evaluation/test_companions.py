"""Samples depend on others in ways that show only where the right ones are replaced, or only late in the data."""

import numpy as np
import pytest
import torch
from torch import nn

from evalmode.errors import BatchError, ModelRunError
from evalmode.evaluation import groups, keeping
from evalmode.evaluation.evaluator import evaluate
from evalmode.evaluation.running import ModuleRunner


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


def test_texts_are_cut_with_the_tensors_beside_them():
    code = {"a": 0.0, "b": 9.0}
    inputs, target = data(60, 4, 0)
    sites = ["a", "b"] * 30
    torch.manual_seed(0)
    model = nn.Linear(4, 3).eval()

    def one_by_one(model, batch):
        return model(torch.stack([row + code[site] for site, row in zip(batch["site"], batch["x"], strict=True)]))

    def at_once(model, batch):
        return model(batch["x"] + torch.tensor([code[site] for site in batch["site"]])[:, None])

    shifted = inputs + torch.tensor([code[site] for site in sites])[:, None]
    for forward in (one_by_one, at_once):
        given = {"x": inputs, "labels": target, "site": sites}
        result = evaluate(model, given, forward=forward, keep_predictions=True, progress=False)
        assert np.allclose(result.samples.scores, alone(model, shifted), atol=1e-6)
        assert result.record.exact
        assert not any("beside" in note for note in result.record.notes)


class Characters(nn.Module):
    """The mean over the characters of a text, filling included where `fair` is not asked for."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(128, 3)

    def forward(self, texts, *, fair):
        longest = max(map(len, texts))
        if fair:
            return torch.stack([self.table(torch.tensor([*text.encode()])).mean(0) for text in texts])
        return self.table(torch.tensor([[*text.ljust(longest).encode()] for text in texts])).mean(1)


@pytest.mark.parametrize("fair", [True, False])
def test_texts_alone_are_tried_beside_others(fair):
    texts = ["x" * (1 + place % 7) + "y" for place in range(70)]
    model = Characters().eval()

    def forward(model, batch):
        return model(batch["text"], fair=fair)

    given = {"text": texts, "labels": [place % 3 for place in range(70)]}
    result = evaluate(model, given, forward=forward, keep_predictions=True, progress=False)
    with torch.no_grad():
        wanted = torch.cat([model([text], fair=fair) for text in texts]).numpy()
    assert np.array_equal(result.samples.scores, wanted)
    assert any("depends on the samples beside it" in note for note in result.record.notes) == (not fair)


@pytest.mark.parametrize("form", ["mapping", "tuple", "array"])
def test_every_tensor_of_the_outputs_is_compared(form):
    class Several(nn.Module):
        def forward(self, inputs):
            scores = inputs[:, :3] / inputs.abs().amax()
            if form == "mapping":
                return {"features": inputs, "scores": scores}
            return inputs, scores.numpy() if form == "array" else scores

    inputs, target = data(256, 4, 0)
    result = evaluate(
        Several(),
        (inputs, target),
        prediction=lambda outputs: torch.as_tensor(outputs["scores"] if form == "mapping" else outputs[1]),
        metrics=["accuracy"],
        keep_predictions=True,
        progress=False,
    )
    assert any("depends on the samples beside it" in note for note in result.record.notes)
    assert result.record.execution_sizes == (1,)
    assert result.record.exact


def test_where_no_output_has_rows_no_exactness_is_claimed():
    class Held(nn.Module):
        def forward(self, inputs):
            return {"transposed": inputs[:, :3].T}

    inputs, target = data(256, 4, 0)
    predicted = {"prediction": lambda outputs: outputs["transposed"].argmax(0), "metrics": ["accuracy"]}
    record = evaluate(Held(), (inputs, target), progress=False, **predicted).record
    assert not record.exact
    assert any("could not be tried: no tensor of the outputs has a row" in note for note in record.notes)


def test_a_sample_that_is_there_twice_does_not_hide_the_filling():
    inputs = torch.tensor([[1, 2, 3], [1, 2, 3], [9, 9, 9]])
    result = evaluate(Counted(), (inputs, torch.arange(3)), keep_predictions=True, progress=False)
    assert np.array_equal(result.samples.scores, alone(Counted(), inputs))


class Wide(Flagged):
    """Runs in small executions: what it computes on the way is large."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(4, 100_000)

    def forward(self, inputs):
        return super().forward(inputs) + 0 * self.wide(inputs).sum(1, keepdim=True)


def test_a_run_that_goes_on_tries_the_first_group_as_the_first_run_did(tmp_path, monkeypatch):
    class Late(torch.utils.data.Dataset):
        def __init__(self, stop=None):
            self.inputs, self.target = data(300, 4, 0)
            self.inputs[250, 0] = 77
            self.stop = stop

        def __len__(self):
            return 300

        def __getitem__(self, index):
            if index == self.stop:
                raise OSError("gone")
            return self.inputs[index], self.target[index]

    monkeypatch.setattr(keeping, "_CHUNK_SAMPLES", 64)
    monkeypatch.setattr(groups, "LARGEST", 256)
    whole = evaluate(Wide(), Late(), progress=False).record
    assert max(whole.execution_sizes) < 128
    options = {"journal": tmp_path / "journal.sqlite", "progress": False}
    with pytest.raises(BatchError, match="sample 298"):
        evaluate(Wide(), Late(stop=298), **options)
    again = evaluate(Wide(), Late(), **options).record
    assert (again.exact, again.notes) == (whole.exact, whole.notes)


def test_a_run_that_goes_on_knows_the_executions_of_shapes_that_are_done(tmp_path, monkeypatch):
    class Sizes(torch.utils.data.Dataset):
        def __init__(self, stop=None):
            draw = torch.Generator().manual_seed(0)
            edges = [4 if 0 < place < 65 else 640 for place in range(70)]
            self.images = [torch.randn(1, edge, edge, generator=draw) for edge in edges]
            self.stop = stop

        def __len__(self):
            return 70

        def __getitem__(self, index):
            if index == self.stop:
                raise OSError("gone")
            return self.images[index], index % 3

    torch.manual_seed(0)
    monkeypatch.setattr(keeping, "_CHUNK_SAMPLES", 8)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    whole = evaluate(model, Sizes(), progress=False).record
    options = {"journal": tmp_path / "journal.sqlite", "progress": False}
    with pytest.raises(BatchError, match="sample 67"):
        evaluate(model, Sizes(stop=67), **options)
    again = evaluate(model, Sizes(), **options).record
    assert (again.batch_size, again.execution_sizes, again.notes) == (
        whole.batch_size,
        whole.execution_sizes,
        whole.notes,
    )


def test_a_shape_whose_probe_found_no_memory_is_tried_at_the_smaller_size():
    short = []

    def predict(inputs):
        if len(inputs) == 64 and inputs.shape[1] == 5:
            short.append(len(inputs))
            if len(short) in {2, 3}:  # the execution itself had memory, its probes have none
                raise torch.OutOfMemoryError("out of memory")
        return inputs[:, :3] + 1.0 * (inputs[:, 0] == 77).any()

    runner = ModuleRunner(predict, torch.device("cpu"), None, whole=False, named=False)
    plain, marked = data(64, 4, 0)[0], data(64, 5, 1)[0]
    marked[7, 0] = 77
    runner.outputs(plain)
    with pytest.raises(torch.OutOfMemoryError):
        runner.outputs(marked)
    assert runner.shrink(marked)
    found = runner.outputs(marked)
    assert torch.equal(found, marked[:, :3] + 1.0 * (marked[:, :1] == 77))
    assert runner.exact
