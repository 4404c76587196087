"""Arrays as Parquet columns that other programs read, and back with the bits, dtype and shape they had."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from evalmode.errors import PredictionsError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ColumnLayout", "filled", "layout_of", "stored"]

Values = NDArray[Any]
_PLAIN: Final = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_UNITS: Final = frozenset({"ms", "us", "ns"})  # Parquet knows no others


class ColumnLayout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A column of the file: what it is (`role`, `key`), and how its array is restored.

    `form` is `plain`, `text`, `bytes`, `time` (kept in `unit`) or `raw`: the bytes of values that Parquet has no type
    for. `shape` is that of one sample; where it is longer than (), a cell is a list of all its values in order.
    """

    name: str
    role: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    form: str
    unit: str = ""


def layout_of(name: str, role: str, key: str, values: Values) -> ColumnLayout:
    """How an array of shape `(N, ...)` is kept.

    Raises:
        PredictionsError: it holds Python objects or records.
    """
    dtype = values.dtype
    if dtype.kind not in "biufcUSmM" or dtype.fields is not None:
        raise PredictionsError(
            f"{name} has dtype {dtype}, which cannot be kept in a file",
            expected="booleans, numbers, text or times",
            fix="e.g. np.array(values, dtype=str)",
        )
    form, unit = "raw", ""
    if dtype.str[1:] in _PLAIN:
        form = "plain"
    elif dtype.kind == "U":
        form = "text" if _is_text(values) else "raw"
    elif dtype.kind == "S":
        form = "bytes"
    elif dtype.kind in "mM" and (unit := _unit(values)):
        form = "time"
    return ColumnLayout(name, role, key, dtype.str, values.shape[1:], form, unit)


def stored(layout: ColumnLayout, values: Values) -> pa.Array:
    """Some rows of the column, shape `(n, ...)`, as Arrow has them."""
    import pyarrow as pa

    flat = np.ascontiguousarray(values).reshape(-1)
    if layout.form == "plain":
        cells = pa.array(flat.astype(flat.dtype.newbyteorder("="), copy=False))
    elif layout.form == "time":
        kind = f"{values.dtype.kind}8[{layout.unit}]"
        cells = pa.array(flat.astype(kind))
    elif layout.form in {"text", "bytes"}:
        cells = pa.array(flat.tolist(), pa.string() if layout.form == "text" else pa.binary())
    else:
        size = flat.dtype.itemsize
        cells = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(flat), [None, pa.py_buffer(flat.tobytes())])
    width = math.prod(layout.shape)
    return pa.FixedSizeListArray.from_arrays(cells, width) if layout.shape else cells


def filled(layout: ColumnLayout, column: pa.ChunkedArray, into: Values) -> None:
    """Write rows that were read from a file into their part of the array, bit for bit.

    Raises:
        ValueError: they are not what the layout says.
    """
    at, width = 0, math.prod(layout.shape)
    for part in column.chunks:
        cells = part.flatten() if layout.shape else part
        if len(cells) != len(part) * width or (cells.null_count and layout.form != "time"):
            raise ValueError(f"{layout.name} has rows of another length, or without a value")
        into[at : at + len(part)] = _restored(layout, cells).reshape(len(part), *layout.shape)
        at += len(part)
    if at != len(into):
        raise ValueError(f"{layout.name} has {at} rows where {len(into)} belong")


def _restored(layout: ColumnLayout, cells: pa.Array) -> Values:
    dtype = np.dtype(layout.dtype)
    if layout.form == "raw":
        if cells.type.byte_width != dtype.itemsize:
            raise ValueError(f"{layout.name} holds values of another size")
        data = b"".join(cells.to_pylist())
        return np.frombuffer(data, dtype)
    if layout.form in {"text", "bytes"}:
        return np.array(cells.to_pylist(), dtype)
    values: Values = cells.to_numpy(zero_copy_only=False)
    if values.dtype.kind != dtype.kind or (layout.form == "plain" and values.dtype.itemsize != dtype.itemsize):
        raise ValueError(f"{layout.name} is {values.dtype} where {dtype} belongs")
    return values.astype(dtype)


def _is_text(values: Values) -> bool:
    """No half of a surrogate pair is in it."""
    try:
        "".join(values.reshape(-1).tolist()).encode()
    except UnicodeEncodeError:
        return False
    return True


def _unit(values: Values) -> str:
    """A unit that Parquet knows in which every time is exact; empty where there is none."""
    unit, step = np.datetime_data(values.dtype)
    if unit in _UNITS and step == 1:
        return unit
    if unit == "generic":
        return ""
    try:
        fine = values.astype(f"{values.dtype.kind}8[us]")
    except (TypeError, ValueError, OverflowError):
        return ""
    back = fine.astype(values.dtype)
    return "us" if np.array_equal(back.view(np.int64), values.view(np.int64)) else ""
