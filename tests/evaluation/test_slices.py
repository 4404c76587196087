"""Parts of the test set: missing values, columns under any name, figures that some parts do not have."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from evalmode.errors import UsageError
from evalmode.evaluation.evaluator import evaluate

GENERATOR = torch.Generator().manual_seed(3)
INPUTS = torch.randn(240, 5, generator=GENERATOR)
LABELS = torch.randint(3, (240,), generator=GENERATOR)


def network():
    torch.manual_seed(0)
    return nn.Linear(5, 3).eval()


def run(data=None, **options):
    options.setdefault("metrics", ["accuracy", "log loss"])
    return evaluate(network(), (INPUTS, LABELS) if data is None else data, progress=False, **options)


def with_columns(**columns):
    """The data with further columns, and how it is split."""
    return {
        "data": {"x": INPUTS, "label": LABELS, **columns},
        "split": lambda batch: (batch["x"], batch["label"]),
    }


def parts(result):
    return {(part.by, part.name): part.samples for part in result.record.slices}


def test_samples_without_a_value_are_a_part_of_their_own():
    age = np.arange(240.0)
    age[::4] = math.nan
    result = run(**with_columns(age=age), slices=[("age", 2)])
    found = parts(result)
    assert found["age", "missing"] == 60
    assert sum(found.values()) == 240 and len(found) == 3
    alone = {name for _, name in found if name != "missing"}
    assert all("nan" not in name for name in alone)


def test_missing_values_among_given_ones_are_a_part_of_their_own():
    site = [None if k % 5 == 0 else f"site {k % 2}" for k in range(240)]
    dose = [None if k % 6 == 0 else k % 2 for k in range(240)]
    found = parts(run(slices={"site": site, "dose": dose}))
    assert found["site", "missing"] == 48 and found["dose", "missing"] == 40
    assert (found["dose", "0.0"], found["dose", "1.0"]) == (80, 120)


def test_a_column_of_values_that_are_all_missing_is_one_part():
    age = torch.full((240,), math.nan)
    result = run(**with_columns(age=age), slices=[("age", 4), "age"])
    assert [(part.by, part.name, part.samples) for part in result.record.slices] == [("age", "missing", 240)] * 2


def test_parts_without_the_first_figure_come_after_those_that_have_it():
    right = torch.nn.functional.one_hot(LABELS, 3).float()
    binary = (LABELS == 0).long()
    site = np.where(np.arange(240) < 80, "all of one class", np.where(np.arange(240) < 160, "good", "poor"))
    binary[:80] = 1  # AUROC is not defined there
    scores = right[:, 0] * 4 - 2
    scores[:80] = 1.0
    scores[160:] = torch.randn(80, generator=torch.Generator().manual_seed(1))
    data = (scores[:, None], binary)
    result = evaluate(nn.Identity(), data, metrics=["AUROC", "binary accuracy"], slices={"site": site}, progress=False)
    assert [part.name for part in result.record.slices] == ["poor", "good", "all of one class"]
    assert {figure.name for figure in result.record.slices[-1].metrics} == {"binary accuracy"}


@pytest.mark.parametrize("name", ["confidence", "groups", "slices=other", "prediction"])
def test_a_column_of_the_data_may_have_any_name(name):
    values = np.arange(240) % 2
    result = run(
        **with_columns(**{name: values}),
        slices=[name, {"site": np.arange(240) % 4}],
        groups=np.arange(240) // 2,
        keep_predictions=True,
    )
    assert result.samples.columns[name].tolist() == values.tolist()
    assert parts(result)[name, "1"] == 120
    assert parts(result)["site", "3"] == 60
    assert result.samples.confidence.shape == (240,)
    assert sum(part.count for part in result.record.calibration) == 240


def test_the_confidence_of_a_sample_can_be_cut_by():
    result = run(slices={"sure": lambda columns: columns["confidence"] > 0.6})
    scores = torch.softmax(network()(INPUTS).detach().double(), 1).amax(1)
    assert parts(result)["sure", "sure"] == int((scores > 0.6).sum())


@pytest.mark.parametrize("what", ["ids", "groups", "slices"])
@pytest.mark.parametrize("count", [239, 241])
def test_values_of_another_number_of_samples_are_refused(what, count):
    values = np.arange(count)
    given = {"slices": {"site": values % 3}} if what == "slices" else {what: values}
    with pytest.raises(UsageError, match=rf"{count} values for 240 samples|there are {count} values"):
        run(**given)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(INPUTS, LABELS, strict=True))


@pytest.mark.parametrize("count", [239, 241])
def test_values_of_another_number_than_a_stream_has_are_refused(count):
    with pytest.raises(UsageError, match=f"{count} values"):
        run(Stream(), ids=[f"s{k}" for k in range(count)], limit=math.inf)


def test_of_a_part_of_the_data_all_values_are_given():
    result = run(ids=[f"s{k}" for k in range(240)], limit=50)
    assert result.samples.ids.tolist() == [f"s{k}" for k in range(50)]


@pytest.mark.parametrize("size", [1, 7, 64, 240])
def test_whether_scores_are_probabilities_does_not_depend_on_how_the_data_was_cut(size):
    generator = torch.Generator().manual_seed(2)
    scores = torch.rand(240, 3, generator=generator).softmax(1)
    scores[200] = torch.tensor([3.0, -1.0, 0.5])  # one sample shows that they are logits
    data = [(row, int(label)) for row, label in zip(scores, LABELS, strict=True)]
    result = evaluate(nn.Identity(), data, metrics=["accuracy"], batch_size=size, progress=False)
    expected = torch.softmax(scores.double(), 1).amax(1).numpy()
    assert np.allclose(result.samples.confidence, expected, rtol=1e-12, atol=0)
    whole = evaluate(nn.Identity(), (scores, LABELS), metrics=["accuracy"], progress=False)
    assert whole.record.calibration == result.record.calibration


def test_a_series_of_pandas_and_nan_among_texts_are_values():
    pandas = pytest.importorskip("pandas")
    site = pandas.Series(["a", "b"] * 120)
    mixed = ["a" if k % 2 else math.nan for k in range(240)]
    found = parts(run(slices={"site": site, "mixed": mixed}))
    assert found["site", "a"] == found["site", "b"] == 120
    assert found["mixed", "missing"] == 120


@pytest.mark.parametrize("infinities", [[math.inf], [-math.inf], [math.inf, -math.inf], [math.inf] * 100])
def test_infinities_are_in_the_outermost_parts(infinities):
    age = torch.arange(240.0)
    age[: len(infinities)] = torch.tensor(infinities)
    result = run(**with_columns(age=age), slices=[("age", 4)])
    found = parts(result)
    assert sum(found.values()) == 240
    assert not any("nan" in name for _, name in found)
    assert len(found) == (4 if len(infinities) < 100 else 3)


@pytest.mark.parametrize("step", [1, 10, 86_400])
def test_large_numbers_are_told_apart_in_names(step):
    result = run(**with_columns(when=torch.arange(240) * step + 1_700_000_000), slices=[("when", 4)])
    names = {part.name for part in result.record.slices}
    assert len(names) == 4
    assert not any("e+" in name for name in names) or step == 86_400


def test_a_column_of_booleans_has_two_parts():
    found = parts(run(**with_columns(night=torch.arange(240) % 3 == 0), slices=[("night", 4)]))
    assert found == {("night", "False"): 160, ("night", "True"): 80}


@pytest.mark.parametrize("short", [30, 1024, 5000])
def test_a_predicate_sees_the_same_columns_whatever_the_lengths_of_sequences(short):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 3)

        def forward(self, ids):
            return self.embed(ids).mean(1)

    lengths = [1] * short + [3] * 30
    rows = [{"ids": torch.arange(length) % 20, "label": k % 3, "n": length} for k, length in enumerate(lengths)]
    result = evaluate(
        Pooled(),
        rows,
        split=lambda batch: (batch["ids"], batch["label"]),
        slices={"long": lambda columns: columns["n"] > 2},
        progress=False,
    )
    assert parts(result) == {("long", "long"): 30}


def test_a_predicate_sees_a_column_that_has_an_axis_of_length_one():
    rows = [{"x": INPUTS[k], "label": int(LABELS[k]), "age": torch.tensor([float(k)])} for k in range(240)]
    data = with_columns()["split"]
    result = run(data=rows, split=data, slices={"old": lambda columns: columns["age"] > 100})
    assert parts(result) == {("old", "old"): 139}
