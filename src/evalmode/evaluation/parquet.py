"""A Parquet file as samples: one row group in memory at a time, so that a file may be larger than memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evalmode.errors import MissingExtraError, TaskError

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
        return ParquetRows(parquet.ParquetFile(path))
    except pa.ArrowInvalid as error:
        raise TaskError(f"{os.fspath(path)!r} is no Parquet file: {error}", expected="a Parquet file") from error


class ParquetRows:
    """A dataset of mappings, a row of the file each: numbers and lists of numbers as tensors, text as it is."""

    def __init__(self, file: Any) -> None:
        self._file = file
        counts = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        self._starts: NDArray[np.int64] = np.cumsum([0, *counts])
        self._held: dict[int, dict[str, Any]] = {}

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
            table = self._file.read_row_group(number)
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
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return values.to_numpy(zero_copy_only=False) if not values.null_count else values.to_pylist()
    if pa.types.is_fixed_size_list(kind) and not values.null_count:
        inner = _column(values.flatten())
        if isinstance(inner, np.ndarray):
            return inner.reshape(len(values), kind.list_size, *inner.shape[1:])
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not values.null_count:
        inner = _column(values.flatten())
        if isinstance(inner, np.ndarray):
            ends = np.cumsum([len(entry) for entry in values])
            return np.split(inner, ends[:-1])
    return values.to_pylist()


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
