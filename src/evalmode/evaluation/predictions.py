"""The samples of an evaluation as a Parquet file: for pandas and DuckDB to look into, and to go on with bit for bit.

::

    sample_id  target  prediction  scores  confidence  loss  metric.NAME ...  column.NAME ...

One row per sample in the order of the data. The schema's metadata holds the evaluation's record as JSON under
`evalmode.evaluation`. A digest over all of it tells a damaged file from a whole one; it does not tell who wrote it.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from evalmode.atomic_file import atomic_file
from evalmode.certificate import Environment, EvaluationRecord, ModelRecord
from evalmode.errors import EvalmodeError, MissingExtraError, PredictionsError
from evalmode.evaluation.kept_metrics import KeptMetric, known_metrics
from evalmode.evaluation.parquet_columns import ColumnLayout, filled, layout_of, stored
from evalmode.evaluation.samples import Samples
from evalmode.measure.metric import Metric

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["Predictions", "read_predictions", "require_writable", "write_predictions"]

Values = NDArray[Any]
FORMAT_VERSION: Final = 1
_GROUP_BYTES: Final = 1 << 26
_GROUP_ROWS: Final = 1 << 16
_FORMAT, _VERSION, _RECORD, _METRICS, _PARTS, _DIGEST = (
    f"evalmode.{name}".encode() for name in ("format", "version", "evaluation", "metrics", "parts", "digest")
)
_SINGLE: Final = ("target", "prediction", "scores", "confidence")


class _Evaluated(Protocol):
    """What is written of an evaluation."""

    @property
    def record(self) -> EvaluationRecord: ...
    @property
    def inferred(self) -> tuple[str, ...]: ...
    @property
    def samples(self) -> Samples: ...
    @property
    def metrics(self) -> Mapping[str, Metric]: ...
    @property
    def model(self) -> ModelRecord | None: ...
    @property
    def environment(self) -> Environment | None: ...
    @property
    def subject(self) -> str: ...


class Predictions(TypedDict):
    """The parts of an evaluation that was written, by the names that `Evaluation` has for them.

    `metrics` are those that can be known again: of the catalog, or a mean, proportion or root of a mean of the rows.
    """

    record: EvaluationRecord
    inferred: tuple[str, ...]
    samples: Samples
    metrics: Mapping[str, Metric]
    model: ModelRecord | None
    environment: Environment | None
    subject: str


class _Parts(msgspec.Struct, frozen=True):
    """Everything beside the columns. MessagePack, as JSON has no NaN and no infinity."""

    record: EvaluationRecord
    inferred: tuple[str, ...]
    metrics: tuple[KeptMetric, ...]
    model: ModelRecord | None
    environment: Environment | None
    subject: str
    samples: int
    layouts: tuple[ColumnLayout, ...]


def write_predictions(path: str | os.PathLike[str], evaluation: _Evaluated) -> Path:
    """Write the samples of an evaluation as Parquet, atomically: a reader sees the old file or the new one.

    Raises:
        PredictionsError: an array holds Python objects, or the file cannot be written.
        MissingExtraError: pyarrow is not installed.

    Example:
        >>> write_predictions("predictions.parquet", evaluation)  # doctest: +SKIP
        PosixPath('predictions.parquet')
    """
    _parquet()
    target = Path(path)
    metrics = tuple(
        KeptMetric(name, metric.aggregate, metric.higher_is_better) for name, metric in evaluation.metrics.items()
    )
    arrays = _arrays(evaluation.samples, _loss_name(evaluation.samples, metrics))
    layouts = tuple(layout_of(name, role, key, values) for name, (role, key, values) in arrays.items())
    parts = _Parts(
        evaluation.record,
        evaluation.inferred,
        metrics,
        evaluation.model,
        evaluation.environment,
        evaluation.subject,
        len(evaluation.samples),
        layouts,
    )
    columns = [(layout, arrays[layout.name][2]) for layout in layouts]
    with _told(target, "write"), atomic_file(target) as file:
        _write(file, columns, _metadata(parts, columns))
    return target


def require_writable(path: str | os.PathLike[str]) -> None:
    """Find out before an evaluation whether its predictions can be written afterwards; nothing is left of the trial.

    Raises:
        PredictionsError: they cannot.
        MissingExtraError: pyarrow is not installed.
    """
    _parquet()
    target = Path(path)
    with _told(target, "write"):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        there = next(folder for folder in target.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            pass


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """The evaluation that `write_predictions` wrote, every array with the bits it had.

    Raises:
        PredictionsError: the file is missing, is of something else, damaged, or of a newer format.
        MissingExtraError: pyarrow is not installed.
    """
    parquet = _parquet()
    place = Path(path)
    with _told(place, "read"):
        if not stat.S_ISREG(os.stat(place).st_mode):
            raise PredictionsError(f"{str(place)!r} is no regular file", expected="a file of keep_predictions=")
        with open(place, "rb") as source:
            if source.read(4) != b"PAR1":
                raise PredictionsError(f"{str(place)!r} is no Parquet file", expected="a file of keep_predictions=")
            with parquet.ParquetFile(source, page_checksum_verification=True) as file:
                metadata = file.schema_arrow.metadata or {}
                _refuse_foreign(place, metadata)
                parts = msgspec.msgpack.decode(base64.b64decode(metadata[_PARTS], validate=True), type=_Parts)
                columns = _read(file, parts)
                if _digest(metadata, columns) != metadata.get(_DIGEST):
                    raise ValueError("its digest is not that of its content")
    samples = _samples(columns)
    return {
        "record": parts.record,
        "inferred": parts.inferred,
        "samples": samples,
        "metrics": known_metrics(parts.metrics, samples.rows, parts.record),
        "model": parts.model,
        "environment": parts.environment,
        "subject": parts.subject,
    }


def _arrays(samples: Samples, loss: str | None) -> dict[str, tuple[str, str, Values]]:
    """Role, key and array of every column, by its name in the file."""
    single = {name: getattr(samples, name) for name in _SINGLE}
    return {
        "sample_id": ("id", "", samples.ids),
        **{name: (name, "", values) for name, values in single.items() if values is not None},
        **({} if loss is None else {"loss": ("loss", "", samples.rows[loss])}),
        **{f"metric.{name}": ("row", name, values) for name, values in samples.rows.items()},
        **{f"column.{name}": ("column", name, values) for name, values in samples.columns.items()},
    }


def _loss_name(samples: Samples, metrics: tuple[KeptMetric, ...]) -> str | None:
    """The first metric that is a loss of each sample: a number, smaller is better."""
    by_name = {metric.name: metric for metric in metrics}
    for name, rows in samples.rows.items():
        metric = by_name.get(name)
        if rows.ndim == 1 and rows.dtype.kind == "f" and metric is not None and metric.higher_is_better is False:
            return name
    return "loss" if "loss" in samples.rows and samples.rows["loss"].ndim == 1 else None


def _samples(columns: list[tuple[ColumnLayout, Values]]) -> Samples:
    def named(role: str) -> dict[str, Values]:
        return {layout.key: values for layout, values in columns if layout.role == role}

    single = {layout.role: values for layout, values in columns if layout.role in {"id", *_SINGLE}}
    return Samples(
        single["id"],
        named("row"),
        single.get("target"),
        single.get("prediction"),
        single.get("scores"),
        named("column"),
        single.get("confidence"),
    )


def _blocks(columns: list[tuple[ColumnLayout, Values]]) -> Iterator[slice]:
    """The rows of each row group: some tens of megabytes, so that neither writer nor reader holds all of them twice."""
    rows = len(columns[0][1])
    width = sum(values.nbytes for _, values in columns) // max(rows, 1)
    step = min(_GROUP_ROWS, max(1, _GROUP_BYTES // max(width, 1)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _write(file: Any, columns: list[tuple[ColumnLayout, Values]], metadata: dict[bytes, bytes]) -> None:
    import pyarrow as pa

    kept = [(layout, values) for layout, values in columns if 0 not in layout.shape]
    schema = pa.schema([(layout.name, stored(layout, values[:0]).type) for layout, values in kept], metadata)
    # A dictionary would hold NaNs of different bits as one.
    words = [layout.name for layout, _ in kept if layout.form == "text" and not layout.shape]
    options = {"use_dictionary": words or False, "compression": "zstd", "write_page_checksum": True}
    with _parquet().ParquetWriter(file, schema, **options) as writer:
        for rows in _blocks(columns):
            arrays = [stored(layout, values[rows]) for layout, values in kept]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=len(arrays[0]))


def _read(file: pq.ParquetFile, parts: _Parts) -> list[tuple[ColumnLayout, Values]]:
    if file.metadata.num_rows != parts.samples:
        raise ValueError(f"it has {file.metadata.num_rows} rows where {parts.samples} belong")
    columns = [(layout, np.zeros((parts.samples, *layout.shape), layout.dtype)) for layout in parts.layouts]
    if len({layout.name for layout, _ in columns}) < len(columns) or columns[0][0].role != "id":
        raise ValueError("its columns are not those of predictions")
    kept = [(layout, values) for layout, values in columns if 0 not in layout.shape]
    start = 0
    for group in range(file.num_row_groups):
        table: pa.Table = file.read_row_group(group, use_threads=False)
        if table.num_rows > parts.samples - start or table.column_names != [layout.name for layout, _ in kept]:
            raise ValueError("its row groups are not those that were written")
        for layout, values in kept:
            filled(layout, table.column(layout.name), values[start : start + table.num_rows])
        start += table.num_rows
    if start != parts.samples:
        raise ValueError(f"{parts.samples - start} rows are missing")
    return columns


def _metadata(parts: _Parts, columns: list[tuple[ColumnLayout, Values]]) -> dict[bytes, bytes]:
    metadata = {
        _FORMAT: str(FORMAT_VERSION).encode(),
        _VERSION: (version("evalmode") if parts.environment is None else parts.environment.evalmode).encode(),
        _RECORD: msgspec.json.encode(parts.record),
        _METRICS: msgspec.json.encode([metric.name for metric in parts.metrics]),
        _PARTS: base64.b64encode(msgspec.msgpack.encode(parts)),
    }
    return {**metadata, _DIGEST: _digest(metadata, columns)}


def _digest(metadata: Mapping[bytes, bytes], columns: list[tuple[ColumnLayout, Values]]) -> bytes:
    """Of the metadata as it stands in the file, which a later evalmode may write otherwise, and of every array."""
    state = hashlib.blake2b(digest_size=32)
    for name in (_FORMAT, _VERSION, _RECORD, _METRICS, _PARTS):
        value = metadata.get(name, b"")
        state.update(name + len(value).to_bytes(8, "little") + value)
    for rows in _blocks(columns):
        for _, values in columns:
            state.update(values[rows].tobytes())
    return state.hexdigest().encode()


def _refuse_foreign(path: Path, metadata: Mapping[bytes, bytes]) -> None:
    if _FORMAT not in metadata:
        raise PredictionsError(
            f"{str(path)!r} is a Parquet file, but no predictions of evalmode", expected="a file of keep_predictions="
        )
    if metadata[_FORMAT] != str(FORMAT_VERSION).encode():
        raise PredictionsError(
            f"{str(path)!r} has predictions format {metadata[_FORMAT].decode(errors='replace')}",
            expected=str(FORMAT_VERSION),
            fix="pip install --upgrade evalmode",
        )


@contextmanager
def _told(path: Path, doing: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except EvalmodeError:
        raise
    except OSError as error:
        if doing == "read" and isinstance(error, FileNotFoundError):
            fix = "evaluate with keep_predictions=PATH"
            raise PredictionsError(f"there is no file {str(path)!r}", fix=fix) from error
        if error.errno is None and doing == "read":
            raise _damaged(path, error) from error
        reason = error.strerror or str(error)
        raise PredictionsError(
            f"cannot {doing} {str(path)!r}: {reason}", fix="look at the folder and its disk"
        ) from error
    except (pa.ArrowException, msgspec.MsgspecError, ValueError, TypeError, LookupError, MemoryError) as error:
        if doing == "write":
            raise PredictionsError(f"cannot write {str(path)!r}: {error}") from error
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> PredictionsError:
    reason = " ".join(str(error).split())[:200]
    return PredictionsError(
        f"{str(path)!r} is damaged: {reason}", expected="the bytes that were written", fix="evaluate again"
    )


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("predictions need pyarrow", fix="pip install 'evalmode[evaluate]'") from error
    return pyarrow.parquet
