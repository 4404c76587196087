"""Everything that modules hold, directly or through containers, plain objects and functions: tensors, generators, and
containers with a shallow copy of what is in them."""

from __future__ import annotations

import array
import collections
import functools
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from evalmode.observe.entries import Entries, attributes_of, cells_of, slots_of
from evalmode.observe.kept_tensor import KeptTensor, is_copyable, keep_tensor
from evalmode.observe.own_generators import OwnGenerator, own_generator
from evalmode.observe.reached import is_own_class, is_own_function, leads_on

__all__ = ["HOOKS", "REGISTERED", "Container", "Holdings", "refill", "same_items"]

_CONTAINERS = (dict, list, set, collections.deque)
_NUMBERS = (np.ndarray, array.array, bytearray)
REGISTERED = ("_parameters", "_buffers")
HOOKS = frozenset(name for name in nn.Module().__dict__ if "hooks" in name)
_SCALARS = frozenset((bool, int, float, complex, str, bytes, type(None)))
_TABLES = frozenset((dict, collections.OrderedDict))
_DEPTH = 4
_SEARCHED = 10_000  # items of one container that are looked into
_OPAQUE_PACKAGES = frozenset((*sys.stdlib_module_names, "builtins", "numpy", "torch")) - {"__main__"}


@dataclass(frozen=True, slots=True)
class Container:
    """A container that the module at `owner` holds as `name`, and a shallow copy of its contents.

    With a `label`, each entry counts by itself and is named by it. `outside` says that the model reaches it by its code
    and does not hold it.
    """

    owner: str
    name: str
    container: Any
    contents: Any
    label: str = ""
    outside: bool = False


class Holdings:
    """What has been found so far; each thing once, under the first name that it was met with.

    Without `parameters`, these are not copied: they are most of a model's memory.
    """

    def __init__(self, *, parameters: bool = True) -> None:
        self.skipped: tuple[type, ...] = () if parameters else (nn.Parameter,)
        self.containers: list[Container] = []
        self.tensors: dict[int, KeptTensor] = {}
        self.outside_tensors: set[int] = set()
        self.generators: dict[int, OwnGenerator] = {}
        self.kinds: dict[type, str] = {}  # of the plain objects, with the first module that holds one
        self.seen: set[int] = set()

    def add(self, value: Any, owner: str, name: str, depth: int = 0, outside: bool = False) -> None:
        """Add `value`, which the module at `owner` holds as `name`, and what it holds in turn."""
        kind = type(value)
        if kind in _SCALARS:
            return
        if kind in _TABLES and not value and id(value) not in self.seen and depth <= _DEPTH:
            self.seen.add(id(value))  # most tables of a module are empty
            self.containers.append(Container(owner, name, value, {}, outside=outside))
            return
        if isinstance(value, torch.Tensor):
            if id(value) not in self.tensors and not isinstance(value, self.skipped) and is_copyable(value):
                self.tensors[id(value)] = keep_tensor(owner, name, value)
                if outside:
                    self.outside_tensors.add(id(value))
            return
        if depth > _DEPTH or isinstance(value, nn.Module) or id(value) in self.seen:
            return
        held = own_generator(owner, name, value)
        if held is not None:
            self.generators.setdefault(id(value), held)
        elif isinstance(value, tuple):
            self._items(enumerate(value), owner, name, depth, outside)
        elif isinstance(value, _CONTAINERS):
            self._container(value, owner, name, depth, outside)
        elif isinstance(value, _NUMBERS):
            self._numbers(value, owner, name, outside)
        elif isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            if name.partition("[")[0] not in HOOKS:  # what others hang on a module is not its own
                self._callable(value, owner, name, depth, outside)
        elif _is_plain_object(value, outside):
            self._object(value, owner, name, depth, outside)

    def entries(self, entries: Any, owner: str, label: str, depth: int = 0, outside: bool = False) -> None:
        """Add a mapping whose entries count each by itself, named by `label`, and what they hold."""
        contents = dict(entries)
        self.containers.append(Container(owner, label, entries, contents, label, outside))
        for name, value in contents.items():
            if not leads_on(value) or not outside:
                self.add(value, owner, label.format(name), depth, outside)

    def _container(self, value: Any, owner: str, name: str, depth: int, outside: bool) -> None:
        self.seen.add(id(value))
        contents = dict(value) if isinstance(value, dict) else list(value)
        self.containers.append(Container(owner, name, value, contents, outside=outside))
        pairs: Iterable[tuple[Any, Any]] = contents.items() if isinstance(contents, dict) else enumerate(contents)
        self._items(pairs, owner, name, depth, outside)
        if _is_plain_object(value, outside):
            self._attributes(value, owner, name, depth, outside)

    def _items(self, pairs: Iterable[tuple[Any, Any]], owner: str, name: str, depth: int, outside: bool) -> None:
        registered = depth == 0 and name in REGISTERED
        for _, (key, item) in zip(range(_SEARCHED), pairs, strict=False):
            self.add(item, owner, str(key) if registered else f"{name}[{key!r}]", depth + 1, outside)

    def _numbers(self, value: Any, owner: str, name: str, outside: bool) -> None:
        if isinstance(value, np.ndarray) and (value.dtype.hasobject or not value.flags.writeable):
            return
        self.seen.add(id(value))
        contents = value.copy() if isinstance(value, np.ndarray) else value[:]
        self.containers.append(Container(owner, name, value, contents, outside=outside))

    def _object(self, value: Any, owner: str, name: str, depth: int, outside: bool) -> None:
        self.seen.add(id(value))
        self.kinds.setdefault(type(value), owner)
        self._attributes(value, owner, name, depth, outside)

    def _attributes(self, value: Any, owner: str, name: str, depth: int, outside: bool) -> None:
        """The attributes of an object, in its dictionary and in slots, none of them read through code of its class."""
        for entries in (attributes_of(value), slots_of(value)):
            if entries is not None:
                self.entries(entries, owner, f"{_escaped(name)}.{{}}", depth + 1, outside)

    def _callable(self, value: Any, owner: str, name: str, depth: int, outside: bool) -> None:
        """What a function of the user's own, a bound method or a `partial` carries along."""
        self.seen.add(id(value))
        if isinstance(value, functools.partial):
            self.add(value.func, owner, f"{name}.func", depth + 1, outside)
            self.add(value.args, owner, f"{name}.args", depth + 1, outside)
            self.add(value.keywords, owner, f"{name}.keywords", depth + 1, outside)
        elif isinstance(value, types.MethodType):
            self.add(value.__self__, owner, f"{name}.__self__", depth + 1, outside)
            self.add(value.__func__, owner, name, depth + 1, outside)
        elif is_own_function(value):
            self.entries(cells_of(value), owner, f"{_escaped(name)}.{{}}", depth + 1, outside)
            self.entries(attributes_of(value), owner, f"{_escaped(name)}.{{}}", depth + 1, outside)
            self.add(value.__defaults__ or (), owner, f"{name}.__defaults__", depth + 1, outside)
            self.add(value.__kwdefaults__ or {}, owner, f"{name}.__kwdefaults__", depth + 1, outside)


def _escaped(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


def _is_plain_object(value: Any, outside: bool) -> bool:
    """An object of the user's with attributes of its own; what libraries of the system keep is theirs."""
    kind = type(value)
    if kind is types.SimpleNamespace:
        return True
    root = str(kind.__module__).partition(".")[0]
    return root not in _OPAQUE_PACKAGES and not isinstance(value, type) and (not outside or is_own_class(kind))


def same_items(container: Any, contents: Any) -> bool:
    """Whether a container still holds what its copy holds: the very same objects, or equal numbers."""
    if not isinstance(container, np.ndarray) and not container and not contents:  # most tables of a module are empty
        return True
    if isinstance(container, np.ndarray):
        return (
            container.shape == contents.shape
            and container.dtype == contents.dtype
            and bool(np.array_equal(container, contents, equal_nan=container.dtype.kind in "fc"))
        )
    if isinstance(container, _NUMBERS):
        return bool(container == contents)
    if len(container) != len(contents):
        return False
    if isinstance(container, Mapping):
        pairs = zip(container.items(), contents.items(), strict=True)
        return all(key == other and value is kept for (key, value), (other, kept) in pairs)
    if isinstance(container, set):
        return all(item in container for item in contents)
    return all(item is kept for item, kept in zip(container, contents, strict=True))


def refill(container: Any, contents: Any) -> None:
    """Make a container hold again what its copy holds."""
    if isinstance(container, np.ndarray):
        if container.shape != contents.shape:
            container.resize(contents.shape, refcheck=False)
        container[...] = contents
    elif isinstance(container, _NUMBERS):
        container[:] = contents
    elif isinstance(container, Entries):
        for name in [name for name in container if name not in contents]:
            del container[name]
        for name, value in contents.items():
            if container.read(name) is not value:
                container[name] = value
    else:
        container.clear()
        if isinstance(container, dict | set):
            container.update(contents)
        else:
            container.extend(contents)
