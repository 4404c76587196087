"""A short digest of what a value holds, to tell whether two passes left the same: tensors by bits, objects by parts."""

from __future__ import annotations

import array
import hashlib
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from evalmode.observe.entries import attributes_of, slots_of
from evalmode.observe.tree import tensor_bytes

__all__ = ["content_digest", "held_tensors"]

_DEPTH = 6
_PARTS = 2_000


def content_digest(value: Any) -> str:
    """A digest of `value` that is equal for equal content; order counts, but not in a set.

    Example:
        >>> content_digest([1, torch.zeros(2)]) == content_digest([1, torch.zeros(2)])
        True
        >>> content_digest({"a": 1}) == content_digest({"a": 2})
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(value, 0):
        digest.update(part)
    return digest.hexdigest()


def held_tensors(value: Any, depth: int = 0) -> list[torch.Tensor]:
    """The tensors that `value` is or holds."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in _items(value, depth) for tensor in held_tensors(item, depth + 1)]


def _parts(value: Any, depth: int) -> Iterator[bytes]:
    yield type(value).__name__.encode()
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)} {value.requires_grad}".encode()
        if not value.is_meta:
            yield tensor_bytes(value)
    elif isinstance(value, numbers.Number | np.generic | str | bytes | bytearray | type(None)):
        yield repr(value).encode()
    elif isinstance(value, np.ndarray | array.array):
        yield f"{value.shape} {value.dtype}".encode() if isinstance(value, np.ndarray) else b""
        yield value.tobytes()
    elif isinstance(value, set | frozenset):
        yield "".join(sorted(content_digest(item) for item in list(value)[:_PARTS])).encode()
    elif depth < _DEPTH:
        yield str(len(value) if hasattr(value, "__len__") else 0).encode()
        for item in _items(value, depth):
            yield from _parts(item, depth + 1)


def _items(value: Any, depth: int) -> list[Any]:
    if depth >= _DEPTH or isinstance(value, type | torch.nn.Module):
        return []
    if isinstance(value, Mapping):
        return [part for pair in list(value.items())[:_PARTS] for part in pair]
    if isinstance(value, list | tuple | set | frozenset) or type(value).__name__ == "deque":
        return list(value)[-_PARTS:]
    if callable(value):
        return []
    own = [*(attributes_of(value) or {}).values(), *(slots_of(value) or {}).values()]
    return own[:_PARTS]
