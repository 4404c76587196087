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
from evalmode.evaluation.parquet import ParquetRows
from evalmode.evaluation.source import Source
from evalmode.observe.attribution import is_installed, is_user_file
from evalmode.observe.bytecode import code_bytes
from evalmode.observe.fingerprint import fingerprint
from evalmode.observe.tree import leaves, tensor_bytes
from evalmode.predictor.module_backed import ModulePredictor
from evalmode.predictor.optimized import OptimizedPredictor

__all__ = ["data_identity", "described", "model_identity", "sample_bytes", "sample_digest", "told_whole"]

_READ = 16  # samples of a dataset that tell it from another one before any is run
_STEP = 4096  # rows of arrays read at a time
_PLAIN = (str, bytes, int, float, complex, bool, type(None), range, re.Pattern, torch.dtype, torch.device)
_DEEPEST = 6  # objects within objects that are looked into
_HELPERS = 3  # functions that functions call
_FEW = 1000  # parts of a global list


def model_identity(model: Any, module: nn.Module | None) -> dict[str, str]:
    """The weights, and the plan that runs them."""
    if isinstance(model, OptimizedPredictor):
        return {"model": model.plan.weights or "unknown weights", "plan": str(model.plan)}
    if module is None:
        return {"model": f"{type(model).__qualname__} {_code_of_class(type(model))}", "plan": "its own"}
    forward = model._forward if isinstance(model, ModulePredictor) else None  # noqa: SLF001 - the rule it was made with
    called = "" if forward is None else f", called by {described(forward)}"
    own = _own_code(module)
    weights = f"{type(module).__name__} {fingerprint(module)}"
    return {"model": f"{weights}{f', code {own}' if own else ''}", "plan": f"plain eval(){called}"}


def data_identity(source: Source) -> str:
    """The data's length, and a digest of all of it where it is arrays or a file, of some of its samples otherwise.

    The other samples are told by `sample_digest`, each as it is recorded. A sample that cannot be read takes no part:
    it is told when its turn comes.
    """
    digest = hashlib.sha256()
    if source.rows is not None and source.samples:
        for start in range(0, source.samples, _STEP):
            _update(digest, source.rows(range(start, min(start + _STEP, source.samples))))
    elif isinstance(source.dataset, ParquetRows):
        digest.update(source.dataset.digest())
    elif source.fetch is not None and source.samples:
        places = np.unique(np.linspace(0, source.samples - 1, min(_READ, source.samples)).round().astype(int))
        for place in places.tolist():
            try:
                _update(digest, loaded_apart(lambda place=place: [source.fetch(place)])[0])  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001 - whatever a decoder raises
                digest.update(f"unreadable {place} {type(error).__name__}".encode())
    known = source.samples if source.samples is not None else "any number of"
    return f"{source.kind}, {known} samples, {digest.hexdigest()[:16]}"


def told_whole(source: Source) -> bool:
    """Whether `data_identity` reads all of the data: its samples then need no digests of their own."""
    return source.rows is not None or isinstance(source.dataset, ParquetRows)


def sample_digest(sample: Any) -> int:
    """64 bits that tell a sample, its input and its target, from another one.

    Example:
        >>> sample_digest((torch.zeros(2), 1)) == sample_digest((torch.zeros(2), 1)) != sample_digest(
        ...     (torch.zeros(2), 2)
        ... )
        True
    """
    digest = hashlib.sha256()
    _update(digest, sample)
    return int.from_bytes(digest.digest()[:8], "little")


def sample_bytes(sample: Any) -> int:
    """About how many bytes a sample has.

    Example:
        >>> sample_bytes((torch.zeros(100), "cat"))
        403
    """
    return sum(_bytes(leaf) for _, leaf in leaves(sample))


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
    if hasattr(type(value), "__array__"):  # a Series keeps its values where no attribute of its own shows them
        array = np.asarray(value)
        return f"{type(value).__qualname__} {described(array.tolist() if array.dtype.kind == 'O' else array, within)}"
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
            private = name.startswith("__") and not name.endswith("__")
            known = f"_{kind.__name__.lstrip('_')}{name}" if private else name
            if hasattr(value, known) and not name.endswith("__"):
                held[known] = getattr(value, known)
    library = _names_in_libraries(type(value))
    told = (pair for pair in sorted(held.items()) if not pair[0].startswith("_") or pair[0] not in library)
    inside = [f"{name}={described(part, within)}" for name, part in told]
    if isinstance(value, nn.Module):
        inside.append(fingerprint(value))
    if value.__class__.__module__ == "builtins":
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
                digest.update(name.encode() + code_bytes(function.__code__) + _bound(function, (kind,)).encode())
    return digest.hexdigest()[:12]


def _own_code(module: nn.Module) -> str:
    """A digest of the user's own code in the classes of a model, and of the numbers and texts that its modules hold.

    Whole numbers and flags are left out: a model may count its calls. Installed packages are told by their weights.
    """
    digest, seen, found = hashlib.sha256(), set(), False
    for name, part in module.named_modules():
        bases = [base for base in type(part).__mro__ if _functions_of_the_user(base)]
        if not bases:
            continue
        found = True
        held = sorted((key, value) for key, value in vars(part).items() if isinstance(value, float | str))
        digest.update(f"{name} {type(part).__qualname__} {held!r}".encode())
        for base in bases:
            if base not in seen:
                seen.add(base)
                plain = {key: value for key, value in vars(base).items() if isinstance(value, float) and key[:1] != "_"}
                digest.update(repr(sorted(plain.items())).encode())
                for key, function in _functions_of_the_user(base):
                    digest.update(key.encode() + code_bytes(function.__code__) + _bound(function, (base,)).encode())
    return digest.hexdigest()[:12] if found else ""


def _functions_of_the_user(kind: type) -> list[tuple[str, types.FunctionType]]:
    functions = ((name, getattr(part, "__func__", part)) for name, part in sorted(vars(kind).items()))
    return [
        (name, function)
        for name, function in functions
        if isinstance(function, types.FunctionType)
        and is_user_file(function.__code__.co_filename)
        and not is_installed(function.__code__.co_filename)
    ]


def _names_in_libraries(kind: type) -> frozenset[str]:
    """The names that code of installed packages uses in a class: such attributes with `_` are caches and counters."""
    found: set[str] = set()
    for base in kind.__mro__:
        for part in vars(base).values():
            code = getattr(getattr(part, "fget", getattr(part, "__func__", part)), "__code__", None)
            if code is not None and (is_installed(code.co_filename) or not is_user_file(code.co_filename)):
                found |= _names(code) | {constant for constant in code.co_consts if isinstance(constant, str)}
    return frozenset(found)


def _bound(function: types.FunctionType, within: tuple[object, ...]) -> str:
    """What a function carries beside its code: what it closes over, its defaults, and the globals that it reads, as far
    as those are plain values, containers of them, or functions of the user's own."""
    held: list[object] = []
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:
            held.append("empty")
    inside = (*within, function)
    named = function.__kwdefaults__ or {}
    read = {name: function.__globals__.get(name) for name in sorted(_names(function.__code__)) if name[:2] != "__"}
    told = {name: value for name, value in read.items() if value is not None and _is_told(value, len(inside))}
    parts = (held, function.__defaults__ or (), named, *([told] if told else []))
    if not any(parts):
        return ""
    return f" with {' '.join(described(part, inside) for part in parts)}"


def _is_told(value: object, depth: int) -> bool:
    """Whether a global takes part in what its reader does: the code of libraries is that of their versions."""
    if isinstance(value, types.FunctionType):
        file = value.__code__.co_filename
        return depth < _HELPERS and is_user_file(file) and not is_installed(file)
    if isinstance(value, Mapping):
        return _is_told([*value, *value.values()], depth)
    if isinstance(value, list | tuple | set | frozenset):
        return len(value) <= _FEW and all(_is_told(part, depth) for part in value)
    return isinstance(value, _PLAIN)


def _names(code: types.CodeType) -> set[str]:
    """The names that code looks up, functions inside it included."""
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _bytes(leaf: object) -> int:
    if isinstance(leaf, torch.Tensor):
        return leaf.numel() * leaf.element_size()
    if isinstance(leaf, np.ndarray):
        return leaf.nbytes
    return len(leaf) if isinstance(leaf, str | bytes) else 8


def _update(digest: Any, tree: Any) -> None:
    for path, leaf in leaves(tree):
        digest.update(path.encode())
        if isinstance(leaf, torch.Tensor):
            digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode() + tensor_bytes(leaf))
        elif isinstance(leaf, np.ndarray) and leaf.dtype.kind != "O":
            digest.update(f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
        elif hasattr(leaf, "__array_interface__") and not isinstance(leaf, np.ndarray):  # a PIL image, a NumPy scalar
            array = np.asarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        elif isinstance(leaf, np.ndarray):
            digest.update(described(leaf.tolist()).encode())
        else:
            digest.update(described(leaf).encode())
