"""Lists, texts and columns of pandas are taken as they are, and what cannot be is named."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from evalmode.errors import EvalmodeError, TaskError
from evalmode.evaluation.evaluator import evaluate

INPUTS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3
SITE = ["a", "b"] * 30
MODEL = torch.nn.Linear(4, 3)


def split(batch):
    return batch["x"], batch["labels"]


def slices_of(site, by="site", **options):
    return evaluate(MODEL, {"x": INPUTS, "labels": LABELS, "site": site}, split=split, slices=by, **options).record


@pytest.mark.parametrize(
    "site", [SITE, np.array(SITE), np.array(SITE, object), pd.Series(SITE)], ids=["list", "array", "objects", "pandas"]
)
def test_a_column_of_texts_cuts_slices(site):
    record = slices_of(site)
    assert {cut.name: cut.samples for cut in record.slices} == {"a": 30, "b": 30}
    means = {cut.name: cut.metrics[0].value for cut in record.slices}
    right = (MODEL(INPUTS).argmax(1) == LABELS).numpy()
    assert means == {"a": right[::2].mean(), "b": right[1::2].mean()}


def test_a_missing_text_is_a_slice_and_a_journal_tells_other_texts(tmp_path):
    record = slices_of([None, *SITE[1:]])
    assert {cut.name: cut.samples for cut in record.slices if cut.samples > 1} == {"a": 29, "b": 30}
    journal = tmp_path / "run.journal"
    assert slices_of(SITE, journal=journal) == slices_of(SITE, journal=journal)
    with pytest.raises(Exception, match="of another evaluation"):
        slices_of(SITE[::-1], journal=journal)


@pytest.mark.parametrize("age", [list(range(60)), pd.Series(range(60))], ids=["list", "pandas"])
def test_a_column_of_numbers_cuts_slices(age):
    assert sorted(cut.samples for cut in slices_of(age, [("site", 4)]).slices) == [15, 15, 15, 15]


@pytest.mark.parametrize("exact", [True, False])
def test_targets_of_pandas_are_targets(exact):
    expected = evaluate(MODEL, (INPUTS, LABELS), exact=exact).record.metrics
    for inputs in (INPUTS, INPUTS.numpy()):
        assert evaluate(MODEL, (inputs, pd.Series(LABELS.numpy())), exact=exact).record.metrics == expected
    listed = evaluate(MODEL, {"x": INPUTS, "labels": LABELS.tolist()}, split=split).record.metrics
    assert listed == evaluate(MODEL, (INPUTS, LABELS)).record.metrics


def test_texts_reach_a_forward_as_a_list_and_the_bad_one_is_named():
    codes = {"a": [1.0, 0.0, 0.0, 0.0], "b": [0.0, 1.0, 0.0, 0.0]}

    def forward(model, batch):
        assert isinstance(batch["site"], list)
        return model(torch.tensor([codes[text] for text in batch["site"]]))

    data = {"site": [*SITE[:41], "new", *SITE[42:]], "labels": LABELS}
    with pytest.raises(Exception, match=r"^sample 41: "):
        evaluate(MODEL, data, forward=forward)
    record = evaluate(MODEL, data, forward=forward, on_bad_sample="skip").record
    assert [bad.id for bad in record.bad] == ["41"]
    rest = [place for place in range(60) if place != 41]
    inputs = torch.tensor([codes[SITE[place]] for place in rest])
    assert record.metrics[0] == evaluate(MODEL, (inputs, LABELS[rest])).record.metrics[0]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (np.array(["2020-01-01"] * 60, "datetime64[D]"), r"datetime64\[D\] of shape \(60,\)"),
        ([object()] * 60, "object"),
    ],
)
def test_a_part_that_is_no_column_is_named(part, words):
    with pytest.raises(TaskError, match=f"whose part 'when' is .*{words}"):
        evaluate(MODEL, {"x": INPUTS, "labels": LABELS, "when": part}, split=split)


def test_a_table_is_named_with_the_fix():
    with pytest.raises(TaskError, match="part 0 is DataFrame") as caught:
        evaluate(MODEL, (pd.DataFrame(INPUTS.numpy()), LABELS))
    assert "to_numpy" in str(caught.value)


def test_numbers_that_float32_would_make_one_stay_apart():
    numbers = {"x": INPUTS, "labels": LABELS}
    times = [1.7e9 + place for place in range(len(INPUTS))]
    named = evaluate(MODEL, {**numbers, "time": times}, split=split, ids="time", progress=False)
    assert len(set(named.samples.ids)) == len(INPUTS)
    hashes = [2**64 - 1 - place for place in range(len(INPUTS))]
    hashed = evaluate(MODEL, {**numbers, "id": hashes}, split=split, ids="id", progress=False)
    assert len(set(hashed.samples.ids)) == len(INPUTS)


def test_texts_reach_a_forward_where_batches_run_as_they_come():
    def forward(model, batch):
        assert all(isinstance(text, str) for text in batch["site"])
        return model(batch["x"])

    data = ({"x": INPUTS, "site": ["a", "b"] * (len(INPUTS) // 2)}, LABELS)
    record = evaluate(MODEL, data, forward=forward, exact=False, progress=False).record
    assert record.samples == len(INPUTS)


def test_batches_of_lists_alone_are_told_to_have_no_rows():
    loader = DataLoader([*zip(INPUTS, LABELS, strict=True)], batch_size=4, collate_fn=lambda rows: ([*rows], 3))
    with pytest.raises(EvalmodeError):
        evaluate(MODEL, loader, forward=lambda model, batch: model(torch.stack([x for x, _ in batch])), exact=False)
