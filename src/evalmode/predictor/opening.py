"""Containers of this process: what they hold, and how one like it is made around other values."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evalmode.predictor.form import OMITTED, Key, MappingNode, Node, SequenceNode, is_key

__all__ = ["Maker", "Opened", "opened"]

Maker = Callable[[Sequence[Any]], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """What a container holds; `node` makes its node around those of its values.

    `maker` builds another one of its class; it is None where a plain container will do.
    """

    values: tuple[Any, ...]
    node: Callable[[tuple[Node, ...]], SequenceNode | MappingNode]
    maker: Maker | None = None


def opened(tree: Any) -> Opened | None:
    """What `tree` holds; None if it is no container, or one whose keys are no plain data.

    A class that cannot be made anew from its values (checked here, with the values at hand) is replaced by a plain one.

    Example:
        >>> opened((1, 2)).values
        (1, 2)
        >>> opened(object()) is None
        True
    """
    if isinstance(tree, Mapping):
        return _mapping(tree)
    if isinstance(tree, list | tuple):
        return _sequence(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return _dataclass(tree)
    return None


def _mapping(tree: Mapping[Any, Any]) -> Opened | None:
    keys = tuple(tree)
    if not all(map(is_key, keys)):
        return None
    values, kind = tuple(tree[key] for key in keys), type(tree)
    name = "" if kind is dict else kind.__name__
    if kind is dict:
        return Opened(values, lambda items: MappingNode(keys, items))

    absent = _absent(tree, keys)

    def made(new: Sequence[Any]) -> Any:
        pairs = {key: value for key, value in zip(keys, new, strict=True) if value is not OMITTED}
        if dataclasses.is_dataclass(kind):  # a Hugging Face output: its fields are its keys
            return kind(**pairs)
        return OrderedDict(pairs) if kind is OrderedDict else kind(pairs)  # type: ignore[call-arg]

    def same(again: Any) -> bool:
        return isinstance(again, Mapping) and list(again) == list(keys) and _identical(again.values(), values)

    def node(items: tuple[Node, ...]) -> MappingNode:
        return MappingNode(keys, items, name, absent=absent)

    quick = _output_maker(tree, keys)
    maker = (
        _if_it_works(quick, values, lambda again: same(again) and vars(again) == vars(made(values))) if quick else None
    )
    return Opened(values, node, maker or _if_it_works(made, values, same))


def _absent(tree: Mapping[Any, Any], keys: tuple[Key, ...]) -> tuple[str, ...]:
    """The fields that a Hugging Face output leaves empty."""
    if not dataclasses.is_dataclass(tree):
        return ()
    names = (field.name for field in dataclasses.fields(tree))
    return tuple(
        name for name in names if name not in keys and not hasattr(dict, name) and getattr(tree, name, 0) is None
    )


def _output_maker(tree: Mapping[Any, Any], keys: tuple[Key, ...]) -> Maker | None:
    """Makes a Hugging Face output, a dataclass that is an OrderedDict, without its constructor, which takes 15 µs."""
    kind = type(tree)
    if not (isinstance(tree, OrderedDict) and dataclasses.is_dataclass(kind)):
        return None
    absent = dict.fromkeys(name for name in vars(tree) if name not in keys)

    def made(new: Sequence[Any]) -> Any:
        again = kind.__new__(kind)
        attributes = vars(again)
        attributes.update(absent)
        for key, value in zip(keys, new, strict=True):
            attributes[key] = None if value is OMITTED else value
            if value is not OMITTED:
                OrderedDict.__setitem__(again, key, value)
        return again

    return made


def _sequence(tree: list[Any] | tuple[Any, ...]) -> Opened:
    values, kind = tuple(tree), type(tree)
    if kind is list:
        return Opened(values, lambda items: SequenceNode("list", items))
    if kind is tuple:
        return Opened(values, lambda items: SequenceNode("tuple", items))
    fields = getattr(tree, "_fields", None) or _structseq_fields(tree)
    fields = tuple(fields) if len(fields) == len(values) and all(isinstance(name, str) for name in fields) else ()

    def made(new: Sequence[Any]) -> Any:
        items = [None if value is OMITTED else value for value in new]
        constructor: Any = kind
        return constructor(*items) if hasattr(kind, "_make") else constructor(items)

    def same(again: Any) -> bool:
        return type(again) is kind and _identical(again, values)

    def node(items: tuple[Node, ...]) -> SequenceNode:
        return SequenceNode("tuple" if isinstance(tree, tuple) else "list", items, kind.__name__, fields)

    return Opened(values, node, _if_it_works(made, values, same))


def _structseq_fields(tree: Any) -> tuple[str, ...]:
    """The fields of what `torch.max` and the like return."""
    return tuple(getattr(type(tree), "__match_args__", ())) if hasattr(tree, "n_sequence_fields") else ()


def _dataclass(tree: Any) -> Opened:
    kind = type(tree)
    keys = tuple(field.name for field in dataclasses.fields(tree) if hasattr(tree, field.name))
    values = tuple(getattr(tree, key) for key in keys)

    def made(new: Sequence[Any]) -> Any:
        again = object.__new__(kind)  # __init__ may take other arguments than its fields
        for key, value in zip(keys, new, strict=True):
            object.__setattr__(again, key, None if value is OMITTED else value)  # a frozen one too
        return again

    def same(again: Any) -> bool:
        return _identical((getattr(again, key) for key in keys), values)

    return Opened(
        values, lambda items: MappingNode(keys, items, kind.__name__, attributes=True), _if_it_works(made, values, same)
    )


def _if_it_works(maker: Maker, values: tuple[Any, ...], same: Callable[[Any], bool]) -> Maker | None:
    try:
        return maker if same(maker(values)) else None
    except Exception:  # noqa: BLE001 - somebody else's constructor: a plain container takes its place
        return None


def _identical(first: Any, second: Any) -> bool:
    return len(found := list(first)) == len(second) and all(a is b for a, b in zip(found, second, strict=True))
