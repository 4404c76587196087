"""A chunk as bytes and back: arrays as their raw bytes beside dtype and shape. Nothing is pickled or executed.

::

    magic (4)  header length (u32)  header as MessagePack  the arrays one after the other

Numbers are little-endian. No length is believed before it fits. The bytes of equal chunks are equal.
"""

from __future__ import annotations

import math
import re
import struct
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from evalmode.certificate import BadSampleRecord
from evalmode.errors import UsageError
from evalmode.evaluation.chunk import Chunk, under

__all__ = ["packed", "unpacked"]

_HEAD = struct.Struct("<4sI")
_MAGIC: Final = b"EMC3"
_KINDS: Final = "biufcUSmM"
_DTYPE: Final = re.compile(r"[<>|][biufcUS][1-9]\d{0,8}|[<>][mM]8(\[\d{0,9}[A-Za-zμ]{1,7}\])?")
_SINGLE: Final = ("target", "prediction", "scores", "confidence", "digests")


class _Array(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    name: str
    dtype: str
    shape: tuple[int, ...]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    arrays: tuple[_Array, ...]
    bad: tuple[BadSampleRecord, ...]
    bad_positions: tuple[int, ...]
    told: bytes = b""


def packed(chunk: Chunk) -> bytes:
    """The chunk as bytes.

    Raises:
        UsageError: an array holds Python objects, whose bytes mean nothing in another process.

    Example:
        >>> chunk = Chunk(np.array([0]), np.array(["a"]), {"loss": np.array([0.5])})
        >>> unpacked(packed(chunk)).rows
        {'loss': array([0.5])}
    """
    records, parts = [], []
    for name, values in {"positions": chunk.positions, **chunk.arrays()}.items():
        if values.dtype.kind not in _KINDS or values.dtype.fields is not None:
            raise UsageError(
                f"{name} has dtype {values.dtype}, which cannot be kept in a file",
                expected="booleans, numbers, text or times",
                fix="e.g. np.array(values, dtype=str)",
            )
        if values.dtype.itemsize == 0:
            values = values.astype(f"{values.dtype.kind}1")
        records.append(_Array(name, values.dtype.str, values.shape))
        parts.append(np.ascontiguousarray(values).tobytes())
    header = msgspec.msgpack.encode(_Header(tuple(records), chunk.bad, chunk.bad_positions, chunk.told))
    return b"".join((_HEAD.pack(_MAGIC, len(header)), header, *parts))


def unpacked(data: bytes) -> Chunk:
    """The chunk that `packed` made bytes of, bit for bit.

    Raises:
        ValueError: the bytes are none, or not whole.
    """
    if len(data) < _HEAD.size:
        raise ValueError("it is too short")
    magic, length = _HEAD.unpack_from(data)
    offset = _HEAD.size + length
    if magic != _MAGIC or offset > len(data):
        raise ValueError("its head is not that of a chunk")
    try:
        header = msgspec.msgpack.decode(data[_HEAD.size : offset], type=_Header)
    except msgspec.MsgspecError as error:
        raise ValueError(f"its header cannot be read: {error}") from error
    arrays: dict[str, NDArray[Any]] = {}
    for record in header.arrays:
        values = _array(record, data, offset)
        arrays[record.name] = values
        offset += values.nbytes
    if offset != len(data):
        raise ValueError("its length is not that of its arrays")
    if "positions" not in arrays or "ids" not in arrays:
        raise ValueError("it has no positions or no ids")
    return Chunk(
        positions=arrays["positions"],
        ids=arrays["ids"],
        rows=under("rows/", arrays),
        columns=under("columns/", arrays),
        bad=header.bad,
        bad_positions=header.bad_positions,
        told=header.told,
        **{name: arrays[name] for name in _SINGLE if name in arrays},
    )


def _array(record: _Array, data: bytes, offset: int) -> NDArray[Any]:
    if not _DTYPE.fullmatch(record.dtype):
        raise ValueError(f"an array of {record.dtype!r} is not what a chunk holds")
    try:
        dtype = np.dtype(record.dtype)
    except TypeError as error:
        raise ValueError(f"{record.dtype!r} is no dtype") from error
    count = math.prod(record.shape)
    if min(record.shape, default=0) < 0 or count * dtype.itemsize > len(data) - offset:
        raise ValueError(f"{record.name!r} is longer than the chunk")
    return np.frombuffer(data, dtype, count, offset).reshape(record.shape).copy()
