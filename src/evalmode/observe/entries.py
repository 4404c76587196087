"""Named places that hold values, read and written as a mapping: an object's slots, a function's closure, a class's
attributes, a file's globals."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ABSENT", "Entries", "attributes_of", "cells_of", "class_attributes_of", "globals_of", "slots_of"]

ABSENT: Any = type("_Absent", (), {"__repr__": lambda self: "nothing"})()
"""The value of what is not there."""


@dataclass(frozen=True, slots=True, eq=False)
class Entries(MutableMapping[str, Any]):
    """A mapping over places that Python keeps elsewhere; `read` gives `ABSENT` for an empty one."""

    names: Callable[[], Iterable[str]]
    read: Callable[[str], Any]
    write: Callable[[str, Any], None]
    remove: Callable[[str], None]

    def __getitem__(self, name: str) -> Any:
        value = self.read(name)
        if value is ABSENT:
            raise KeyError(name)
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        self.write(name, value)

    def __delitem__(self, name: str) -> None:
        self.remove(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.names() if self.read(name) is not ABSENT)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def attributes_of(value: Any) -> dict[str, Any] | None:
    """The attributes of `value`, read without running code of its class; None if it has no dictionary of them."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return own if type(own) is dict else None


def slots_of(value: Any) -> Entries | None:
    """What `value` holds in `__slots__`; None if its class has none.

    Example:
        >>> class Totals:
        ...     __slots__ = ("calls",)
        >>> totals = Totals()
        >>> totals.calls = 1
        >>> dict(slots_of(totals))
        {'calls': 1}
    """
    places = {
        name: place
        for kind in reversed(type(value).__mro__)
        for name, place in vars(kind).items()
        if isinstance(place, types.MemberDescriptorType) and not name.startswith("__")
    }
    if not places:
        return None

    def read(name: str) -> Any:
        try:
            return places[name].__get__(value)
        except AttributeError:
            return ABSENT

    return Entries(
        lambda: places,
        read,
        lambda name, now: places[name].__set__(value, now),
        lambda name: places[name].__delete__(value),
    )


def cells_of(function: types.FunctionType) -> Entries:
    """What `function` shares with the function that it was made in.

    Example:
        >>> def counter():
        ...     calls = 0
        ...
        ...     def step():
        ...         nonlocal calls
        ...         calls += 1
        ...
        ...     return step
        >>> step = counter()
        >>> step()
        >>> dict(cells_of(step))
        {'calls': 1}
    """
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells.pop("__class__", None)

    def read(name: str) -> Any:
        try:
            return cells[name].cell_contents
        except ValueError:
            return ABSENT

    def write(name: str, value: Any) -> None:
        cells[name].cell_contents = value

    def remove(name: str) -> None:
        del cells[name].cell_contents

    return Entries(lambda: cells, read, write, remove)


def class_attributes_of(kind: type) -> Entries:
    """The values that `kind` itself holds: what is no method, property or other descriptor.

    Example:
        >>> class Net:
        ...     calls = 0
        ...
        ...     def forward(self): ...
        >>> dict(class_attributes_of(Net))
        {'calls': 0}
    """

    def read(name: str) -> Any:
        value = vars(kind).get(name, ABSENT)
        return ABSENT if hasattr(type(value), "__get__") else value

    return Entries(
        lambda: [name for name in vars(kind) if not name.startswith(("__", "_abc_"))],
        read,
        lambda name, value: type.__setattr__(kind, name, value),
        lambda name: type.__delattr__(kind, name),
    )


def globals_of(namespace: dict[str, Any], names: Iterable[str]) -> Entries:
    """Some of the globals of a file."""
    wanted = sorted(names)
    return Entries(
        lambda: wanted,
        lambda name: namespace.get(name, ABSENT),
        namespace.__setitem__,
        namespace.__delitem__,
    )
