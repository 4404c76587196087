"""What an evaluation is of, in words and digests: what a journal must agree with to be gone on with."""

from __future__ import annotations

import enum
import functools
import hashlib
import os
import re
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from evalmode.evaluation.batches import loaded_apart
from evalmode.evaluation.source import Source
from evalmode.observe.bytecode import code_bytes
from evalmode.observe.fingerprint import fingerprint
from evalmode.observe.tree import leaves, tensor_bytes
from evalmode.predictor.module_backed import ModulePredictor
from evalmode.predictor.optimized import OptimizedPredictor

__all__ = ["data_identity", "described", "model_identity"]

_READ = 16  # samples of a dataset that tell it from another one; arrays are read whole up to so many bytes:
_WHOLE = 256 << 20
_PLAIN = (str, bytes, int, float, complex, bool, type(None), range, re.Pattern, torch.dtype, torch.device)
_DEEPEST = 6  # objects within objects that are looked into


def model_identity(model: Any, module: nn.Module | None) -> dict[str, str]:
    """The weights, and the plan that runs them."""
    if isinstance(model, OptimizedPredictor):
        return {"model": model.plan.weights or "unknown weights", "plan": str(model.plan)}
    if module is None:
        return {"model": f"{type(model).__qualname__} {_code_of_class(type(model))}", "plan": "its own"}
    forward = model._forward if isinstance(model, ModulePredictor) else None  # noqa: SLF001 - the rule it was made with
    called = "" if forward is None else f", called by {described(forward)}"
    return {"model": f"{type(module).__name__} {fingerprint(module)}", "plan": f"plain eval(){called}"}


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
    """A setting in words that are the same in another process: a function by name, digest of code, bound values; an
    object by its class and what its attributes hold.

    `within` are the functions and objects that hold the value: they are not opened again.

    Example:
        >>> described(["accuracy", None, 3])
        "['accuracy', None, 3]"
    """
    if any(value is holder for holder in within):
        return type(value).__name__
    if isinstance(value, types.FunctionType):
        return (
            f"{value.__qualname__} {hashlib.sha256(code_bytes(value.__code__)).hexdigest()[:12]}{_bound(value, within)}"
        )
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return f"partial of {' '.join(described(part, within) for part in parts)}"
    if isinstance(value, Mapping):
        pairs = (f"{described(name, within)}: {described(part, within)}" for name, part in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(described(part, within) for part in value) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(described(part, within) for part in value)) + "}"
    if isinstance(value, types.MethodType):
        return f"{described(value.__func__, within)} of {described(value.__self__, within)}"
    if isinstance(value, np.ndarray | torch.Tensor):
        digest = hashlib.sha256()
        _update(digest, value)
        return f"values {digest.hexdigest()[:12]}"
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, np.generic):
        return f"{value.dtype} {value.item()!r}"
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    if isinstance(value, type | types.BuiltinFunctionType) or len(within) >= _DEEPEST:
        return str(getattr(value, "__qualname__", None) or type(value).__qualname__)
    return _object(value, (*within, value))


def _object(value: Any, within: tuple[Any, ...]) -> str:
    held = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:  # as of a dataclass with slots, each class its own
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if hasattr(value, name):
                held[name] = getattr(value, name)
    inside = [f"{name}={described(part, within)}" for name, part in sorted(held.items()) if not name.startswith("_")]
    if isinstance(value, nn.Module):
        inside.append(fingerprint(value))
    if value.__class__.__module__ == "builtins" or not (inside or held):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    digest = hashlib.sha256(", ".join(inside).encode()).hexdigest()[:12]
    return f"{type(value).__qualname__} {_code_of_class(type(value))} {digest}"


def _code_of_class(kind: type) -> str:
    """A digest of the methods that a class, and those it is made of, define: two of one name are told apart."""
    digest = hashlib.sha256()
    for base in kind.__mro__:
        for name, part in sorted(vars(base).items()):
            function = getattr(part, "__func__", part)
            if isinstance(function, types.FunctionType):
                digest.update(name.encode() + code_bytes(function.__code__))
    return digest.hexdigest()[:12]


def _bound(function: types.FunctionType, within: tuple[object, ...]) -> str:
    """What a function carries beside its code: what it closes over, its defaults, and plain globals that it reads."""
    held: list[object] = []
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:
            held.append("empty")
    inside = (*within, function)
    named = function.__kwdefaults__ or {}
    read = {name: function.__globals__.get(name) for name in sorted(_names(function.__code__)) if name[:2] != "__"}
    plain = {name: value for name, value in read.items() if value is not None and isinstance(value, _PLAIN)}
    parts = (held, function.__defaults__ or (), named, *([plain] if plain else []))
    if not any(parts):
        return ""
    return f" with {' '.join(described(part, inside) for part in parts)}"


def _names(code: types.CodeType) -> set[str]:
    """The names that code looks up, functions inside it included."""
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


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
