"""A Parquet file as samples: one row group in memory at a time, so that a file may be larger than memory."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evalmode.errors import MissingExtraError, TaskError
from evalmode.evaluation.batches import loaded_apart

__all__ = ["ParquetRows", "parquet_rows"]

_HELD = 2  # row groups: the one that is read, and the one before


def parquet_rows(path: Any) -> ParquetRows:
    """The rows of the Parquet file at `path`.

    Raises:
        TaskError: there is no such file, or it is no Parquet file.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("a Parquet file needs pyarrow", fix="pip install 'evalmode[evaluate]'") from error
    if not Path(path).is_file():
        raise TaskError(
            f"there is no file {os.fspath(path)!r}",
            expected="the path of a Parquet file",
            fix="evalmode.evaluate(model, 'test.parquet')",
        )
    try:
        return ParquetRows(parquet.ParquetFile(path), path)
    except pa.ArrowInvalid as error:
        raise TaskError(f"{os.fspath(path)!r} is no Parquet file: {error}", expected="a Parquet file") from error


class ParquetRows:
    """A dataset of mappings, a row of the file each: numbers and lists of numbers as tensors, text as it is."""

    def __init__(self, file: Any, path: Any) -> None:
        self._file, self._path = file, path
        counts = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        self._starts: NDArray[np.int64] = np.cumsum([0, *counts])
        self._held: dict[int, dict[str, Any]] = {}
        self._unread: frozenset[str] = frozenset()

    def digest(self) -> bytes:
        """SHA-256 of the file's bytes; when it was written takes no part."""
        with open(self._path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    def leave_unread(self, split: Callable[[Any], Any], named: Collection[str]) -> None:
        """Leave out columns that would stop a sample, with a missing value or of times, if nobody reads them.

        Who reads them is `split`, called with the first row, and whoever they are `named` by. A split that fails on
        that row, or goes through all columns, reads all.
        """
        group = next(self._file.read_row_group(int(number)) for number in np.flatnonzero(np.diff(self._starts)))
        batch = _Seen()
        for name in group.column_names:
            value = _column(group.column(name).combine_chunks())[0]
            batch[name] = torch.zeros(1) if value is None else _batch_of(_value(value))
        try:
            loaded_apart(lambda: [split(batch)])
        except Exception:  # noqa: BLE001 - the user's own code, which is told when it is run
            return
        if not batch.every:
            self._unread = frozenset(self._stopping() - batch.read - {*named})
            self._held.clear()

    def _stopping(self) -> set[str]:
        """The columns that have missing values, or values that make no batch."""
        import pyarrow as pa

        schema, found = self._file.schema_arrow, set()
        for name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
                found.add(name)
        metadata = self._file.metadata
        for number in range(metadata.num_row_groups):
            for place in range(metadata.num_columns):
                column = metadata.row_group(number).column(place)
                statistics = column.statistics
                if statistics is None or not statistics.has_null_count or statistics.null_count:
                    found.add(column.path_in_schema.partition(".")[0])
        return found

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, place: int) -> dict[str, Any]:
        if not 0 <= place < len(self):
            raise IndexError(place)
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        row = place - int(self._starts[number])
        return {name: _value(column[row]) for name, column in self._group(number).items()}

    def _group(self, number: int) -> dict[str, Any]:
        if number not in self._held:
            wanted = [name for name in self._file.schema_arrow.names if name not in self._unread]
            table = self._file.read_row_group(number, columns=wanted)
            self._held[number] = {name: _column(table.column(name).combine_chunks()) for name in table.column_names}
            while len(self._held) > _HELD:
                del self._held[next(iter(self._held))]
        return self._held[number]

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a Parquet file is read in one process")  # pyarrow's readers do not travel


def _column(values: Any) -> Any:
    """The values of a column by row: an array where they are numbers or lists of one length."""
    import pyarrow as pa

    kind = values.type
    if values.null_count:  # the others keep the type that they have without it
        there = iter(_column(values.drop_null()))
        return [next(there) if valid else None for valid in values.is_valid().to_pylist()]
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return values.to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(kind):
        inner = _column(values.flatten())
        if isinstance(inner, np.ndarray):
            return inner.reshape(len(values), kind.list_size, *inner.shape[1:])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _column(values.flatten())
        ends = np.cumsum([len(entry) for entry in values])
        if isinstance(inner, np.ndarray):
            return np.split(inner, ends[:-1])
        parts = [inner[start:end] for start, end in itertools.pairwise([0, *ends.tolist()])]
        if all(_even(part) for part in parts):
            return [np.stack(part) for part in parts]
    return values.to_pylist()


def _even(parts: list[Any]) -> bool:
    """Whether they are arrays of one shape."""
    return all(isinstance(part, np.ndarray) for part in parts) and len({part.shape for part in parts}) == 1


def _batch_of(value: Any) -> Any:
    return value[None] if isinstance(value, torch.Tensor) else [value]


class _Seen(dict[str, Any]):
    """A batch that notes which of its columns are read, and whether all of them may be."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[str] = set()
        self.every = False

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self.every = True  # what is left may be read as a whole
        return super().pop(name, *default)

    def __iter__(self) -> Iterator[str]:
        self.every = True
        return super().__iter__()

    def keys(self) -> Any:
        self.every = True
        return super().keys()

    def items(self) -> Any:
        self.every = True
        return super().items()

    def values(self) -> Any:
        self.every = True
        return super().values()

    def copy(self) -> Any:
        self.every = True
        return super().copy()


def _value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return torch.from_numpy(np.asarray(value).copy())
    if isinstance(value, list) and value and not isinstance(value[0], str | bytes | dict | type(None)):
        return torch.as_tensor(np.asarray(value))
    if value is None:
        raise ValueError("a value is missing (null)")
    return value
