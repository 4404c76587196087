"""Columns of a Parquet file that cannot be read stop a sample only where somebody looks them up."""

import datetime as dt
import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from evalmode.errors import BatchError
from evalmode.evaluation.evaluator import evaluate

ROWS = 120
INPUTS = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(ROWS) % 3
NULLS = [None if place % 7 == 4 else place % 5 for place in range(ROWS)]


def network():
    torch.manual_seed(0)
    return nn.Linear(6, 3)


def run(path, split=lambda batch: (batch["x"], batch["label"]), **options):
    return evaluate(network(), path, split=split, keep_predictions=True, progress=False, **options)


@pytest.fixture
def path(tmp_path):
    def of(**columns):
        table = {"x": pa.array(INPUTS.tolist(), pa.list_(pa.float32())), "label": LABELS.tolist(), **columns}
        pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=50)
        return tmp_path / "a.parquet"

    return of


@pytest.fixture(scope="module")
def scores():
    with torch.no_grad():
        return evaluate(network(), (INPUTS, LABELS), keep_predictions=True, progress=False).samples.scores


ODD = {
    "nulls": NULLS,
    "texts": [None if value is None else str(value) for value in NULLS],
    "times": [dt.datetime(2020, 1, 1)] * ROWS,
    "lists of times": [[dt.datetime(2020, 1, 1)]] * ROWS,
    "decimals": [decimal.Decimal("1.5")] * ROWS,
    "ragged": pa.array([[[1, 2], [3]]] * ROWS),
    "holes": pa.array([[1, None, 3]] * ROWS),
    "hole first": pa.array([[None, 1]] * ROWS),
    "maps": pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())),
    "structs": pa.array([{"a": 1, "when": dt.datetime(2020, 1, 1)}] * ROWS),
    "nothing": pa.nulls(ROWS),
    "a.b": NULLS,
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_column_stops_only_those_who_look_it_up(path, scores, name):
    file = path(**{name: ODD[name]})
    assert np.array_equal(run(file).samples.scores, scores)
    with pytest.raises(BatchError, match=rf"sample \d+: the column {name!r} cannot be read: ") as caught:
        run(file, split=lambda batch: (batch["x"], batch[name]))
    assert "split(batch)" in caught.value.fix
    with pytest.raises(BatchError, match=rf"sample \d+: the column {name!r} cannot be read: "):
        evaluate(network(), file, progress=False)


SPLITS = {
    "asks": lambda batch: (batch["x"] * (2 if "odd" in batch else 1) / 2, batch["label"]),
    "defaults": lambda batch: (batch.setdefault("x", None), batch.get("label")),
    "counts": lambda batch: (batch["x"] * (len(batch) / 3), batch["label"]),
    "names": lambda batch: (batch[next(iter(batch))], batch[[*batch.keys()][1]]),
    "pops": lambda batch: (batch.pop("x"), batch.pop("label")),
    "reads late": lambda batch: (batch["x"], batch["label"] if len(batch["x"]) else batch["odd"]),
    "adds": lambda batch: (batch.update(odd=batch["x"]) or batch["odd"], batch["label"]),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_batch_is_as_a_dict_of_all_columns(path, scores, name):
    assert np.array_equal(run(path(odd=NULLS), split=SPLITS[name]).samples.scores, scores)


def test_a_batch_may_be_handed_on(path, scores):
    def forward(model, batch):
        return model(batch["x"])

    found = run(path(odd=NULLS, when=ODD["times"]), split=lambda batch: (batch, batch["label"]), forward=forward)
    assert np.array_equal(found.samples.scores, scores)


@pytest.mark.parametrize("where", ["split", "whole", "forward", "slices"])
def test_what_is_looked_up_anywhere_loses_the_samples_that_lack_it(path, scores, where):
    options = {
        "split": {"split": lambda batch: (batch["x"], batch["label"] + 0 * batch["odd"])},
        "whole": {"split": lambda batch: ({**batch}["x"], batch["label"])},
        "forward": {
            "split": lambda batch: (batch, batch["label"]),
            "forward": lambda model, batch: model(batch["x"]) + 0 * batch["odd"][:, None],
        },
        "slices": {"slices": "odd"},
    }[where]
    lacking = [place for place in range(ROWS) if NULLS[place] is None]
    with pytest.raises(BatchError, match=r"sample 4: the column 'odd' cannot be read: a value is missing \(null\)"):
        run(path(odd=NULLS), **options)
    result = run(path(odd=NULLS), on_bad_sample="skip", **options)
    assert [int(bad.id) for bad in result.record.bad] == lacking
    assert np.array_equal(result.samples.scores, np.delete(scores, lacking, 0))


def test_a_column_that_is_looked_up_only_for_some_data_is_read(path):
    def split(batch):
        late = bool((batch["place"] >= 100).any())
        return batch["x"], batch["odd"] % 3 if late else batch["label"]

    record = run(path(odd=NULLS, place=[*range(ROWS)]), split=split, on_bad_sample="skip").record
    assert (record.samples, record.skipped) == (ROWS - NULLS.count(None), NULLS.count(None))


def test_a_predicate_sees_the_columns_that_can_be_read(path):
    result = run(path(odd=NULLS, n=[*range(ROWS)]), slices={"late": lambda columns: columns["n"] >= 100})
    assert [part.samples for part in result.record.slices] == [20]


def test_going_on_with_a_journal_leaves_out_the_same_samples(path, tmp_path):
    options = {"split": lambda batch: (batch["x"], batch["odd"]), "on_bad_sample": "skip", "metrics": "accuracy"}
    file = path(odd=[None if value is None else value % 3 for value in NULLS])
    first = run(file, journal=tmp_path / "run.journal", **options)
    again = run(file, journal=tmp_path / "run.journal", **options)
    assert again.record == first.record
    assert first.record.skipped == NULLS.count(None)
