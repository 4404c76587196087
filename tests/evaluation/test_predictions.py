import errno
import json
import math
import os
import sys
from types import SimpleNamespace

import duckdb
import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.evaluation.made_chunks import KINDS, NAMES, bits, chunk_bits, plain_chunk
from torch import nn

from evalmode.certificate import BadSampleRecord, Environment, EvaluationRecord, MetricRecord, ModelRecord
from evalmode.errors import MissingExtraError, PredictionsError
from evalmode.evaluation import predictions
from evalmode.evaluation.evaluator import evaluate
from evalmode.evaluation.kept import joined
from evalmode.evaluation.predictions import read_predictions, write_predictions
from evalmode.evaluation.samples import Samples
from evalmode.measure.accuracy import ACCURACY
from evalmode.measure.catalog import metric_named
from evalmode.measure.metric import Aggregate, Metric, metric_of

ENVIRONMENT = Environment(
    evalmode="0.1.0", python="3", torch="2", device="cpu", processor="", cores=2, threads=2, platform=""
)
RECORD = EvaluationRecord(
    samples=30,
    batch_size=8,
    metrics=(
        MetricRecord(name="accuracy", value=0.1 + 0.2, low=0.2, high=0.4, count=10, total=30),
        MetricRecord(name="loss", value=math.inf, low=math.nan),
    ),
    bad=(BadSampleRecord(id="é", reason="no image"),),
)


def evaluation(samples=None, **changes):
    """An evaluation's parts; the samples of `plain_chunk` where none are given."""
    samples = joined([plain_chunk(range(30))]) if samples is None else samples
    values = {
        "record": RECORD,
        "inferred": ("accuracy: the outputs are class scores",),
        "samples": samples,
        "metrics": {"accuracy": ACCURACY, "loss": metric_of("loss", np.zeros(1), higher_is_better=False)},
        "model": ModelRecord(name="Net", modules=15, parameters=10, bytes=40, fingerprint="00"),
        "environment": ENVIRONMENT,
        "subject": "net",
    }
    return SimpleNamespace(**{**values, **changes})


@pytest.fixture
def written(tmp_path):
    return write_predictions(tmp_path / "predictions.parquet", evaluation())


@st.composite
def any_samples(draw):
    size = draw(st.integers(0, 7))

    def values(kinds=KINDS, axes=2):
        more = st.lists(st.integers(0, 3), max_size=axes)
        return more.flatmap(lambda shape: arrays.arrays(kinds, (size, *shape)))

    rows = st.dictionaries(NAMES, values(st.sampled_from([np.dtype(bool), np.dtype(float)]), 1), max_size=3)
    return Samples(
        draw(arrays.arrays(st.one_of(arrays.integer_dtypes(), arrays.unicode_string_dtypes()), size)),
        draw(rows),
        draw(st.none() | values()),
        draw(st.none() | values()),
        draw(st.none() | values(arrays.floating_dtypes(), 1)),
        draw(st.dictionaries(NAMES, values(axes=1), max_size=3)),
    )


@given(any_samples(), st.integers(1, 400))
@settings(max_examples=75)
def test_any_samples_come_back_bit_for_bit(tmp_path_factory, samples, group_bytes):
    path = tmp_path_factory.mktemp("any") / "p.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictions, "_GROUP_BYTES", group_bytes)
        write_predictions(path, evaluation(samples))
        assert chunk_bits(read_predictions(path)["samples"]) == chunk_bits(samples)


def test_everything_beside_the_samples_comes_back(written):
    parts = read_predictions(written)
    assert set(parts) == set(vars(evaluation()))
    assert (parts["inferred"], parts["model"], parts["environment"], parts["subject"]) == (
        ("accuracy: the outputs are class scores",),
        evaluation().model,
        ENVIRONMENT,
        "net",
    )
    assert msgspec.msgpack.encode(parts["record"]) == msgspec.msgpack.encode(RECORD)
    assert parts["record"].metrics[1].value == math.inf
    assert parts["metrics"]["accuracy"] is ACCURACY


def test_a_metric_is_known_again_or_left_out(tmp_path):
    rows = np.arange(3.0)

    class Spread:
        def figure(self, rows):
            return float(np.ptp(rows))

        def resampled(self, rows, weights):
            return np.zeros(len(weights))

    metrics = {
        "own": metric_of("own", rows, higher_is_better=True),
        "solved": metric_of("solved", rows > 1),
        "root": Metric("root", None, Aggregate.ROOT_MEAN, higher_is_better=False),
        "spread": Metric("spread", None, Aggregate.STATISTIC, statistic=Spread()),
        "AUROC": Metric("AUROC", None, Aggregate.STATISTIC, statistic=Spread()),  # not the one of the catalog
        "top 3 accuracy": metric_named("top 3 accuracy"),
        "R²": metric_named("R²"),
    }
    kept = {
        "own": rows,
        "solved": rows > 1,
        "root": rows,
        "spread": rows[:, None],
        "AUROC": rows[:, None],
        "top 3 accuracy": rows > 0,
        "R²": np.stack([rows, rows + 0.5 * rows**2], 1),
    }
    kept = {metrics[name].name: values for name, values in kept.items()}
    metrics = {metric.name: metric for metric in metrics.values()}
    figures = tuple(MetricRecord(name=name, value=metrics[name].figure(values)) for name, values in kept.items())
    record = EvaluationRecord(samples=3, batch_size=3, metrics=figures)
    path = write_predictions(
        tmp_path / "p.parquet", evaluation(Samples(np.arange(3), kept), metrics=metrics, record=record)
    )
    again = read_predictions(path)
    assert set(metrics) - set(again["metrics"]) == {"spread", "AUROC"}
    assert again["metrics"]["top 3 accuracy"].statistic is None
    for name, metric in again["metrics"].items():
        assert metric.figure(kept[name]) == metrics[name].figure(kept[name])
        assert metric.higher_is_better == metrics[name].higher_is_better
    assert bits(again["samples"].rows["spread"]) == bits(kept["spread"])


def test_without_model_and_environment_it_is_written_too(tmp_path):
    path = write_predictions(tmp_path / "p.parquet", evaluation(model=None, environment=None, metrics={}))
    parts = read_predictions(path)
    assert (parts["model"], parts["environment"], parts["metrics"]) == (None, None, {})


def test_pandas_reads_it(written):
    frame = pd.read_parquet(written)
    whole = evaluation().samples
    assert list(frame.columns) == [
        "sample_id",
        "target",
        "prediction",
        "scores",
        "confidence",
        "loss",
        "metric.accuracy",
        "metric.loss",
        "metric.pairs",
        "column.group",
    ]
    assert frame["sample_id"].tolist() == whole.ids.tolist()
    assert bits(frame["target"].to_numpy()) == bits(whole.target)
    assert bits(frame["metric.accuracy"].to_numpy()) == bits(whole.rows["accuracy"])
    assert bits(frame["loss"].to_numpy()) == bits(whole.rows["loss"])
    assert bits(np.stack(frame["scores"].to_numpy())) == bits(whole.scores)
    assert frame.groupby("column.group")["loss"].mean().index.tolist() == ["g0", "g1"]


def test_duckdb_reads_it(written):
    whole = evaluation().samples
    asked = 'select count(*), sum("metric.accuracy"::int), max(loss), min(len(scores)) from read_parquet(?)'
    with duckdb.connect() as base:
        found = base.execute(asked, [str(written)]).fetchone()
        kinds = base.execute(
            'select distinct "column.group" from read_parquet(?) order by 1', [str(written)]
        ).fetchall()
    assert found == (len(whole), int(whole.rows["accuracy"].sum()), whole.rows["loss"].max(), whole.scores.shape[1])
    assert kinds == [("g0",), ("g1",)]


def test_the_metadata_carries_the_record_versions_and_metric_names(written):
    metadata = pq.read_schema(written).metadata
    record = json.loads(metadata[b"evalmode.evaluation"])
    assert record["samples"] == 30
    assert record["metrics"][0]["value"] == 0.1 + 0.2
    assert record["metrics"][1]["value"] is None  # JSON has no infinity
    assert json.loads(metadata[b"evalmode.metrics"]) == ["accuracy", "loss"]
    assert (metadata[b"evalmode.version"], metadata[b"evalmode.format"]) == (b"0.1.0", b"1")
    for value in metadata.values():
        value.decode()


def test_times_are_times_for_others(tmp_path):
    times = np.array(["2026-01-01", "NaT", "1969-07-20"], "datetime64[D]")
    extreme = np.array([2**62, 0, 1], "datetime64[D]")  # in no unit that Parquet has
    samples = Samples(np.arange(3), columns={"day": times, "second": times.astype("datetime64[s]"), "extreme": extreme})
    path = write_predictions(tmp_path / "p.parquet", evaluation(samples))
    assert chunk_bits(read_predictions(path)["samples"]) == chunk_bits(samples)
    frame = pd.read_parquet(path)
    assert frame["column.day"].tolist()[0] == pd.Timestamp("2026-01-01")
    assert frame["column.day"].isna().tolist() == [False, True, False]


def test_nans_keep_their_bits_and_zeros_their_sign(tmp_path):
    values = np.array([0x7FF8000000000001, 0x7FF8000000000002, 0xFFF8000000000000, 0, 1 << 63], np.uint64).view(float)
    samples = Samples(np.arange(1000), {"loss": np.tile(values, 200)})
    path = write_predictions(tmp_path / "p.parquet", evaluation(samples))
    assert bits(read_predictions(path)["samples"].rows["loss"]) == bits(samples.rows["loss"])


def test_a_large_set_is_written_in_row_groups(tmp_path, monkeypatch):
    samples = Samples(np.arange(200_000), {"loss": np.random.default_rng(0).normal(size=200_000)})
    path = write_predictions(tmp_path / "p.parquet", evaluation(samples))
    file = pq.ParquetFile(path)
    assert file.num_row_groups == 4
    assert file.metadata.row_group(0).num_rows == 1 << 16
    assert chunk_bits(read_predictions(path)["samples"]) == chunk_bits(samples)
    monkeypatch.setattr(predictions, "_GROUP_BYTES", 4_008 * 60)
    wide = Samples(np.arange(500), scores=np.random.default_rng(0).normal(size=(500, 1000)).astype(np.float32))
    path = write_predictions(tmp_path / "wide.parquet", evaluation(wide))
    assert pq.ParquetFile(path).num_row_groups == math.ceil(500 / 60)
    assert bits(read_predictions(path)["samples"].scores) == bits(wide.scores)


def test_the_same_evaluation_gives_the_same_bytes(tmp_path):
    first = write_predictions(tmp_path / "a.parquet", evaluation()).read_bytes()
    assert write_predictions(tmp_path / "b.parquet", evaluation()).read_bytes() == first


# What cannot be written or read


@pytest.mark.parametrize("values", [np.array([object()]), np.zeros(1, "i4,f8")])
def test_what_parquet_cannot_keep_is_refused_with_the_fix(tmp_path, values):
    samples = Samples(np.arange(1), columns={"made": values})
    with pytest.raises(PredictionsError, match=r"column.made has dtype[\s\S]*dtype=str"):
        write_predictions(tmp_path / "p.parquet", evaluation(samples))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(written, monkeypatch, error):
    before = written.read_bytes()

    def failing(*_):
        raise error

    monkeypatch.setattr(predictions.os, "fsync", failing)
    with pytest.raises((PredictionsError, KeyboardInterrupt)) as caught:
        write_predictions(written, evaluation(subject="other"))
    monkeypatch.undo()
    assert written.read_bytes() == before
    assert os.listdir(written.parent) == [written.name]
    if caught.type is PredictionsError:
        assert "No space left on device" in str(caught.value)


def test_a_full_disk_inside_the_writer_is_told(tmp_path, monkeypatch):
    class Full:
        def __init__(self, *_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "ParquetWriter", Full)
    with pytest.raises(PredictionsError, match="No space left"):
        write_predictions(tmp_path / "p.parquet", evaluation())
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    for place in ("/proc/no/p.parquet", tmp_path / "file" / "p.parquet"):
        (tmp_path / "file").touch()
        with pytest.raises(PredictionsError, match=r"cannot write [\s\S]*fix: "):
            write_predictions(place, evaluation())


def test_what_is_no_file_of_predictions_is_refused(tmp_path):
    def refused(name, said):
        with pytest.raises(PredictionsError, match=said):
            read_predictions(tmp_path / name)

    refused("missing", r"there is no file[\s\S]*keep_predictions")
    (tmp_path / "folder").mkdir()
    refused("folder", "no regular file")
    (tmp_path / "text").write_text("a,b\n")
    refused("text", "no Parquet file")
    (tmp_path / "start").write_bytes(b"PAR1")
    refused("start", "is damaged")
    pq.write_table(pa.table({"sample_id": [1]}), tmp_path / "foreign")
    refused("foreign", "no predictions of evalmode")


def rewritten(path, **changes):
    """The same file, its metadata or table changed by another program."""
    table = pq.read_table(path)
    table = changes.pop("table", lambda same: same)(table)
    metadata = {
        **pq.read_schema(path).metadata,
        **{f"evalmode.{name}".encode(): value for name, value in changes.items()},
    }
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_a_newer_format_is_refused_with_the_fix(written):
    with pytest.raises(PredictionsError, match=r"predictions format 2[\s\S]*pip install --upgrade evalmode"):
        read_predictions(rewritten(written, format=b"2"))


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": b"!"},
        {"parts": b"AAAA"},
        {"digest": b"0"},
        {"evaluation": b"{}"},
        {"version": b"9"},
        {"metrics": b"[]"},
        {"table": lambda table: table.slice(1)},
        {"table": lambda table: table.drop_columns(["scores"])},
        {"table": lambda table: table.rename_columns(["id", *table.column_names[1:]])},
        {"table": lambda table: table.set_column(1, "target", table.column("target").cast(pa.int32()))},
        {"table": lambda table: table.set_column(1, "target", pa.array([None] * 30, pa.int64()))},
        {"table": lambda table: table.set_column(1, "target", pa.array([1] * 30, pa.int64()))},
        {"table": lambda table: table.set_column(0, "sample_id", pa.array(["x"] * 30))},
        {"table": lambda table: table.set_column(3, "scores", pa.array([[1.0]] * 30, pa.list_(pa.float32())))},
    ],
)
def test_a_file_that_was_changed_is_told(written, changes):
    with pytest.raises(PredictionsError, match="is damaged"):
        read_predictions(rewritten(written, **changes))


def test_a_file_that_was_only_written_anew_is_fine(written):
    assert chunk_bits(read_predictions(rewritten(written))["samples"]) == chunk_bits(evaluation().samples)


@given(st.data())
@settings(max_examples=75)
def test_changed_bytes_are_told_or_change_nothing(tmp_path_factory, data):
    path = write_predictions(tmp_path_factory.mktemp("flip") / "p.parquet", evaluation())
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    try:
        parts = read_predictions(path)
    except PredictionsError as error:
        parts = {"samples": evaluation().samples, "record": RECORD}
        message = str(error)
    else:
        message = ""
    assert chunk_bits(parts["samples"]) == chunk_bits(evaluation().samples)
    assert msgspec.msgpack.encode(parts["record"]) == msgspec.msgpack.encode(RECORD)
    assert "\n  expected: " in message or not message


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for call in (lambda: write_predictions(tmp_path / "p", evaluation()), lambda: read_predictions(tmp_path / "p")):
        with pytest.raises(MissingExtraError, match=r"pip install 'evalmode\[evaluate\]'"):
            call()


def test_probabilities_of_one_class_decide_at_one_half():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    inputs = torch.randn(80, 4)
    with torch.no_grad():
        wanted = (model(inputs)[:, 0] > 0.5).long()
    result = evaluate(model, (inputs, wanted), metrics=["binary accuracy of probabilities"], progress=False)
    assert result.record.metrics[0].value == 1.0
    assert result.samples.prediction.tolist() == wanted.tolist()


def test_slices_show_the_metric_that_stands_above_them():
    scores = torch.randn(80, generator=torch.Generator().manual_seed(0))
    target = (torch.arange(80) % 4 == 0).long()
    site = ["a" if label else "b" for label in target.tolist()]
    site[0] = "b"
    result = evaluate(
        nn.Identity(),
        {"x": scores, "labels": target, "site": site},
        split=lambda batch: (batch["x"], batch["labels"]),
        metrics=["AUROC", "binary accuracy"],
        slices="site",
        progress=False,
    )
    part = next(each for each in result.record.slices if each.name == "a")
    assert [metric.name for metric in part.metrics] == ["binary accuracy"]
    lines = str(result).splitlines()
    start = next(number for number, line in enumerate(lines) if "Slices by AUROC" in line)
    line = next(line for line in lines[start:] if line.split()[:2] in (["site", "a"], ["a", "-"]))
    assert "-" in line.split()
    assert "%" not in line
