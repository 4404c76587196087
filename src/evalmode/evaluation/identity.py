"""What an evaluation is of, in words and digests: what a journal must agree with to be gone on with."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from evalmode.evaluation.batches import loaded_apart
from evalmode.evaluation.source import Source
from evalmode.observe.fingerprint import fingerprint
from evalmode.observe.tree import leaves, tensor_bytes
from evalmode.predictor.optimized import OptimizedPredictor

__all__ = ["data_identity", "described", "model_identity"]

_READ = 16  # samples of a dataset that tell it from another one; arrays are read whole up to so many bytes:
_WHOLE = 256 << 20


def model_identity(model: Any, module: nn.Module | None) -> dict[str, str]:
    """The weights, and the plan that runs them."""
    if isinstance(model, OptimizedPredictor):
        return {"model": model.plan.weights or "unknown weights", "plan": str(model.plan)}
    if module is None:
        return {"model": type(model).__name__, "plan": "its own"}
    return {"model": f"{type(module).__name__} {fingerprint(module)}", "plan": "plain eval()"}


def data_identity(source: Source) -> str:
    """The data's length, and a digest of some of its samples, or of all where they are arrays at hand.

    A sample that cannot be read takes no part: it is told when its turn comes.
    """
    digest = hashlib.sha256()
    if source.rows is not None and source.samples:
        total = source.samples
        size = sum(_bytes(leaf) for _, leaf in leaves(source.rows(range(1)))) * total
        step = 4096
        starts = range(0, total, step) if size <= _WHOLE else np.linspace(0, total - step, _READ).astype(int).tolist()
        for start in starts:
            _update(digest, source.rows(range(max(start, 0), min(max(start, 0) + step, total))))
    elif source.fetch is not None and source.samples:
        places = np.unique(np.linspace(0, source.samples - 1, min(_READ, source.samples)).round().astype(int))
        for place in places.tolist():
            try:
                _update(digest, loaded_apart(lambda place=place: [source.fetch(place)])[0])  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001 - whatever a decoder raises
                digest.update(f"unreadable {place} {type(error).__name__}".encode())
    known = source.samples if source.samples is not None else "any number of"
    return f"{source.kind}, {known} samples, {digest.hexdigest()[:16]}"


def described(value: Any, within: tuple[Any, ...] = ()) -> str:
    """A setting in words that are the same in another process: a function by name, digest of code, bound values.

    `within` are the functions that hold the value: they are not opened again.

    Example:
        >>> described(["accuracy", None, 3])
        "['accuracy', None, 3]"
    """
    if isinstance(value, types.FunctionType) and value not in within:
        return f"{value.__qualname__} {hashlib.sha256(_code(value.__code__)).hexdigest()[:12]}{_bound(value, within)}"
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return f"partial of {' '.join(described(part, within) for part in parts)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {described(part, within)}" for name, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(described(part, within) for part in value) + "]"
    if isinstance(value, np.ndarray | torch.Tensor):
        digest = hashlib.sha256()
        _update(digest, value)
        return f"values {digest.hexdigest()[:12]}"
    if isinstance(value, str | int | float | bool | type(None)):
        return repr(value)
    return str(getattr(value, "name", None) or getattr(value, "__qualname__", None) or type(value).__name__)


def _code(code: types.CodeType) -> bytes:
    parts = [code.co_code, repr(code.co_names).encode()]
    parts += [_code(part) if isinstance(part, types.CodeType) else _constant(part).encode() for part in code.co_consts]
    return b"\0".join(parts)


def _constant(value: object) -> str:
    """A constant in words that do not depend on the order of a set, which another process has otherwise."""
    if isinstance(value, frozenset):
        return f"frozenset {sorted(map(_constant, value))}"
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else repr(value)


def _bound(function: types.FunctionType, within: tuple[object, ...]) -> str:
    """What a function carries beside its code: the values that it closes over, and its defaults."""
    held: list[object] = []
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:
            held.append("empty")
    inside = (*within, function)
    named = function.__kwdefaults__ or {}
    if not held and not function.__defaults__ and not named:
        return ""
    return f" with {' '.join(described(part, inside) for part in (held, function.__defaults__ or (), named))}"


def _bytes(leaf: object) -> int:
    if isinstance(leaf, torch.Tensor):
        return leaf.numel() * leaf.element_size()
    return leaf.nbytes if isinstance(leaf, np.ndarray) else 64


def _update(digest: Any, tree: Any) -> None:
    for path, leaf in leaves(tree):
        digest.update(path.encode())
        if isinstance(leaf, torch.Tensor):
            digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode() + tensor_bytes(leaf))
        elif isinstance(leaf, np.ndarray) and leaf.dtype.kind != "O":
            digest.update(f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
        elif isinstance(leaf, str | int | float | bytes | type(None)):
            digest.update(repr(leaf).encode())
        else:
            digest.update(type(leaf).__name__.encode())
