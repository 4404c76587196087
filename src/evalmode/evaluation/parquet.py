"""A Parquet file as samples: one row group in memory at a time, so that a file may be larger than memory."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evalmode.errors import MissingExtraError, TaskError
from evalmode.observe.columns import Columns

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
    """A dataset of mappings, a row of the file each: numbers and lists of numbers as tensors, text as it is.

    A column that cannot be read, as a missing value or a time, raises when it is looked up, and stops nothing before.
    """

    def __init__(self, file: Any, path: Any) -> None:
        self._file, self._path = file, path
        counts = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        self._starts: NDArray[np.int64] = np.cumsum([0, *counts])
        self._held: dict[int, dict[str, Any]] = {}

    def digest(self) -> bytes:
        """SHA-256 of the file's bytes; when it was written takes no part."""
        with open(self._path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, place: int) -> Columns:
        if not 0 <= place < len(self):
            raise IndexError(place)
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        row = place - int(self._starts[number])
        values, unread = {}, {}
        for name, cells in self._group(number).items():
            values[name], reason = cells[row]
            if reason:
                unread[name] = {place: reason}
        return Columns(values, unread, place=place)

    def _group(self, number: int) -> dict[str, _Cells]:
        if number not in self._held:
            table = self._file.read_row_group(number)
            self._held[number] = {name: _Cells(table.column(name).combine_chunks()) for name in table.column_names}
            while len(self._held) > _HELD:
                del self._held[next(iter(self._held))]
        return self._held[number]

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a Parquet file is read in one process")  # pyarrow's readers do not travel


class _Cells:
    """A column of a row group: for each row its value, and why it cannot be read or an empty text.

    A value that cannot be read is another one of the column.
    """

    def __init__(self, values: Any) -> None:
        self.reason = f"values of type {values.type} make no tensor" if _makes_no_tensor(values.type) else ""
        self.cells = () if self.reason else _column(values)
        self.another: Any = None

    def __getitem__(self, row: int) -> tuple[Any, str]:
        if self.reason:
            return torch.zeros(()), self.reason
        try:
            return _value(self.cells[row]), ""
        except (TypeError, ValueError) as error:
            return self._another(), str(error)

    def _another(self) -> Any:
        if self.another is None:
            self.another = torch.zeros(())
            for cell in self.cells:
                with contextlib.suppress(TypeError, ValueError):
                    self.another = _value(cell)
                    break
        return self.another


def _makes_no_tensor(kind: Any) -> bool:
    """Whether no value of the type can be one of a batch: times, decimals, null, maps, and lists or structs of such."""
    import pyarrow as pa

    is_ = pa.types
    if is_.is_temporal(kind) or is_.is_decimal(kind) or is_.is_null(kind) or is_.is_map(kind):
        return True
    if is_.is_struct(kind):
        return any(_makes_no_tensor(kind.field(place).type) for place in range(kind.num_fields))
    listed = is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind)
    return listed and _makes_no_tensor(kind.value_type)


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


def _value(value: Any) -> Any:
    """A cell as it is collated.

    Raises:
        TypeError, ValueError: it makes no batch.
    """
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return torch.from_numpy(np.asarray(value).copy())
    if isinstance(value, list) and value and not isinstance(value[0], str | bytes | dict | type(None)):
        return torch.as_tensor(np.asarray(value))
    _require_plain(value)
    return value


def _require_plain(value: Any) -> None:
    if value is None:
        raise ValueError("a value is missing (null)")
    if isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            _require_plain(part)
    elif not isinstance(value, str | bytes | int | float):
        raise TypeError(f"values of type {type(value).__name__} make no tensor")
