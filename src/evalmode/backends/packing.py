"""Payloads of several parts in one run of bytes, each with its length: nothing is executed, unpickled or unzipped."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

import msgspec
import torch
from torch import Tensor

from evalmode.errors import BackendError

__all__ = ["DTYPES", "TensorRecord", "first_part", "pack", "tensor_bytes", "tensor_from", "unpack"]

_MAGIC = b"EVALMODE-PARTS-1"
_LENGTH = struct.Struct("<Q")

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
"""The element types that a payload can name."""


class TensorRecord(msgspec.Struct, frozen=True):
    """The element type and lengths of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorRecord:
        """The record of a tensor."""
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))

    @property
    def element_type(self) -> torch.dtype:
        """The element type itself.

        Raises:
            BackendError: the name is not one of `DTYPES`.
        """
        if self.dtype not in DTYPES:
            raise BackendError(f"a payload names the element type {self.dtype!r}", expected=", ".join(DTYPES))
        return DTYPES[self.dtype]


def pack(parts: Mapping[str, bytes]) -> bytes:
    """The parts in one run of bytes.

    Example:
        >>> unpack(pack({"model": b"<net/>", "weights": b""}), ("model", "weights"))
        {'model': b'<net/>', 'weights': b''}
    """
    pieces = [_MAGIC, _LENGTH.pack(len(parts))]
    for name, body in parts.items():
        title = name.encode()
        pieces += [_LENGTH.pack(len(title)), title, _LENGTH.pack(len(body)), body]
    return b"".join(pieces)


def unpack(payload: bytes, names: tuple[str, ...]) -> dict[str, bytes]:
    """The parts of a payload, which must be exactly `names`, in this order.

    Raises:
        BackendError: the bytes are truncated, have a tail, or hold other parts.
    """
    reader = _reader(payload)
    if reader.length() != len(names):
        raise BackendError("the payload has other parts than expected", expected=", ".join(names))
    parts = {name: reader.part(name) for name in names}
    if not reader.finished:
        raise BackendError("the payload has bytes behind its end")
    return parts


def first_part(payload: bytes, name: str) -> bytes:
    """The first part of a payload, which must be `name`.

    Raises:
        BackendError: it is another one, or truncated.

    Example:
        >>> first_part(pack({"model": b"<net/>", "weights": b"12"}), "model")
        b'<net/>'
    """
    reader = _reader(payload)
    reader.length()
    return reader.part(name)


def tensor_bytes(tensor: Tensor) -> bytes:
    """The elements of a tensor, in row-major order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tensor_from(record: TensorRecord, body: bytes) -> Tensor:
    """The tensor that `tensor_bytes` gave `body` of.

    Raises:
        BackendError: the bytes are too many or too few.
    """
    expected = math.prod(record.shape) * record.element_type.itemsize
    if expected != len(body) or any(length < 0 for length in record.shape):
        raise BackendError(f"a tensor of the payload has {len(body)} bytes", expected=str(expected))
    empty = torch.empty(record.shape, dtype=record.element_type, device="cpu")
    if body:
        empty.reshape(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(body), dtype=torch.uint8))
    return empty


def _reader(payload: bytes) -> _Reader:
    """A reader that stands behind the mark of a payload."""
    reader = _Reader(payload)
    if reader.take(len(_MAGIC)) != _MAGIC:
        raise BackendError("the payload is none that evalmode wrote")
    return reader


class _Reader:
    def __init__(self, payload: bytes) -> None:
        self._payload = memoryview(payload)
        self._position = 0

    def take(self, count: int) -> bytes:
        if count > len(self._payload) - self._position:
            raise BackendError("the payload is truncated")
        self._position += count
        return bytes(self._payload[self._position - count : self._position])

    def length(self) -> int:
        return int(_LENGTH.unpack(self.take(_LENGTH.size))[0])

    def part(self, name: str) -> bytes:
        if self.take(self.length()) != name.encode():
            raise BackendError("the payload has other parts than expected", expected=name)
        return self.take(self.length())

    @property
    def finished(self) -> bool:
        return self._position == len(self._payload)
