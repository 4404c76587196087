"""Batches and outputs as trees: every use of `torch.utils._pytree` is in this file.

Lists, tuples, dicts, named tuples and Hugging Face outputs are known to pytree. Plain dataclasses, other mappings and
`UserDict` (a tokeniser's `BatchEncoding`) are opened here.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from evalmode.observe.columns import Columns
from evalmode.observe.layouts import dense_parts, is_plain

__all__ = [
    "dense_leaves",
    "describe",
    "leaves",
    "map_leaves",
    "map_tensors",
    "same_bits",
    "tensor_bytes",
    "tensor_leaves",
]


def leaves(tree: object) -> list[tuple[str, object]]:
    """Every leaf of `tree` with its path, in a fixed order. A lone tensor has the path `""`.

    Example:
        >>> leaves({"a": 1, "b": [2, 3]})
        [("['a']", 1), ("['b'][0]", 2), ("['b'][1]", 3)]
    """
    found: list[tuple[str, object]] = []
    _collect(tree, "", found, 0)
    return found


def tensor_leaves(tree: object) -> list[tuple[str, torch.Tensor]]:
    """Every tensor of `tree` with its path."""
    return [(path, leaf) for path, leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]


def dense_leaves(tree: object) -> list[tuple[str, torch.Tensor]]:
    """Every tensor of `tree` as a dense one, with its path; a nested tensor has an entry for each that it holds.

    Example:
        >>> ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        >>> [(path, len(leaf)) for path, leaf in dense_leaves({"x": ragged})]
        [("['x'][0]", 2), ("['x'][1]", 3)]
    """
    found = []
    for path, leaf in tensor_leaves(tree):
        if is_plain(leaf):
            found.append((path, leaf))
        elif leaf.is_nested:
            found += [(f"{path}[{position}]", part) for position, part in enumerate(dense_parts(leaf))]
        else:
            parts = dense_parts(leaf)
            found += [(path if len(parts) == 1 else f"{path}.{i}", part) for i, part in enumerate(parts)]
    return found


def map_leaves(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """A copy of `tree` with each leaf replaced by `function(path, leaf)`; containers keep their types."""
    return _rebuild(function, tree, "", 0)


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """A copy of `tree` with each tensor replaced by `function(tensor)`.

    Example:
        >>> map_tensors(lambda tensor: tensor + 1, {"x": torch.zeros(2), "name": "a"})
        {'x': tensor([1., 1.]), 'name': 'a'}
    """
    return map_leaves(lambda _, leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree)


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits; a NaN equals the same NaN, 0.0 and -0.0 differ.

    Example:
        >>> same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
        True
        >>> same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
        False
    """
    if first.dtype != second.dtype or first.device != second.device or first.layout != second.layout:
        return False
    if not is_plain(first) or not is_plain(second):
        one, other = dense_parts(first), dense_parts(second)
        return len(one) == len(other) and all(map(same_bits, one, other)) and (bool(one) or first.shape == second.shape)
    if first.shape != second.shape:
        return False
    if not first.is_floating_point() and not first.is_complex():
        return bool(torch.equal(first, second))
    values, others = _values_of(first), _values_of(second)
    words = _words(values, others)
    return bool(torch.equal(values.view(words), others.view(words)))


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The bits of a tensor in the order of its elements, whatever its strides, dtype and device.

    Example:
        >>> tensor_bytes(torch.tensor([1, 258], dtype=torch.int16)).hex()
        '01000201'
    """
    return b"".join(_bytes_of(part).cpu().numpy().tobytes() for part in dense_parts(tensor.detach()))


def describe(tree: object) -> str:
    """The shapes and dtypes of `tree` in one line, for messages.

    Example:
        >>> describe({"x": torch.zeros(2, 3), "n": 4})
        "{'x': float32[2, 3], 'n': 4}"
    """
    if isinstance(tree, torch.Tensor):
        if tree.is_nested:
            return f"nested {str(tree.dtype).removeprefix('torch.')} of {len(dense_parts(tree))}"
        return f"{str(tree.dtype).removeprefix('torch.')}{list(tree.shape)}"
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(value)}" for key, value in [*_entries(tree)][:12]) + "}"
    if isinstance(tree, list | tuple):
        inner = ", ".join(describe(item) for item in tree[:8]) + (", ..." if len(tree) > 8 else "")
        return f"[{inner}]" if isinstance(tree, list) else f"({inner})"
    if isinstance(tree, bool | int | float | str | type(None)):
        return repr(tree)[:40]
    return type(tree).__name__


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return _values_of(tensor).view(torch.uint8)


def _values_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)


def _words(*tensors: torch.Tensor) -> torch.dtype:
    """The widest integers as which all of the one-dimensional `tensors` can be read: single bytes compare slowly."""
    for words in (torch.int64, torch.int32, torch.int16):
        if all(
            count * tensor.element_size() % words.itemsize == 0
            for tensor in tensors
            for count in (tensor.numel(), tensor.storage_offset())
        ):
            return words
    return torch.uint8


def _collect(tree: Any, path: str, found: list[tuple[str, object]], depth: int) -> None:
    pairs, _ = pytree.tree_flatten_with_path(tree)
    for keys, leaf in pairs:
        where = path + pytree.keystr(keys)
        opened = _opened(leaf) if depth < 16 else None
        if opened is None:
            found.append((where, leaf))
        else:
            for name, value in opened.items():
                _collect(value, where + name, found, depth + 1)


def _rebuild(function: Callable[[str, Any], Any], tree: Any, path: str, depth: int) -> Any:
    def at_leaf(keys: Any, leaf: Any) -> Any:
        where = path + pytree.keystr(keys)
        opened = _opened(leaf) if depth < 16 else None
        if opened is None:
            return function(where, leaf)
        values = [_rebuild(function, value, where + name, depth + 1) for name, value in opened.items()]
        return _with_values(leaf, values)

    return pytree.tree_map_with_path(at_leaf, tree)


def _opened(leaf: Any) -> dict[str, Any] | None:
    """What a container unknown to pytree holds, by path piece; None for a real leaf."""
    if isinstance(leaf, Mapping):
        return {f"[{key!r}]": value for key, value in _entries(leaf)}
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        return {f".{field.name}": getattr(leaf, field.name) for field in dataclasses.fields(leaf)}
    return None


def _entries(mapping: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    return mapping.stored() if isinstance(mapping, Columns) else mapping.items()


def _with_values(container: Any, values: list[Any]) -> Any:
    if isinstance(container, Columns):
        return container.holding(values)
    if isinstance(container, MutableMapping):
        changed = copy.copy(container)
        if isinstance(getattr(container, "data", None), dict):  # UserDict: its copy may share the dict
            changed.data = dict(container.data)  # type: ignore[attr-defined]
        for key, value in zip(container, values, strict=True):
            changed[key] = value
        return changed
    if isinstance(container, Mapping):
        return dict(zip(container, values, strict=True))
    changed = copy.copy(container)
    for field, value in zip(dataclasses.fields(container), values, strict=True):
        object.__setattr__(changed, field.name, value)  # a frozen dataclass is copied, never changed in place
    return changed
