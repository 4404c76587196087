"""What the code of a model reaches outside of the model: globals of its own files, class attributes, closures.

Only code of the user's own is followed, from `forward` on, by the names that it uses; what installed packages keep is
theirs.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Container, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from evalmode.observe.attribution import is_installed, is_user_file
from evalmode.observe.entries import Entries, attributes_of, cells_of, class_attributes_of, globals_of

__all__ = ["Reached", "is_own_class", "is_own_function", "reached_from"]

_CACHED = type(functools.lru_cache(is_installed))  # a class without a public name
_PLAIN = (dict, int, str, type(None))
_LEADING = (_CACHED, types.FunctionType, types.MethodType, functools.partial, type, types.ModuleType, nn.Module)


@dataclass(frozen=True, slots=True)
class Reached:
    """Values outside of the model that the module at `owner` reaches; `label` is filled with the name of each."""

    owner: str
    label: str
    entries: MutableMapping[str, Any]


def is_own_function(function: object) -> bool:
    """Whether `function` is written in a file of the user's own, not in an installed package."""
    if not isinstance(function, types.FunctionType):
        return False
    name = function.__code__.co_filename
    return is_user_file(name) and not is_installed(name)


def is_own_class(kind: type) -> bool:
    """Whether `kind` is written in a file of the user's own."""
    home = sys.modules.get(kind.__module__)
    if home is None or kind.__module__ == "builtins":
        return False
    name = getattr(home, "__file__", None)
    if name is None:  # a notebook, or what Python is built with
        return kind.__module__ == "__main__"
    return is_user_file(name) and not is_installed(name)


def leads_on(value: object) -> bool:
    """Whether `value` is code, or a module, rather than something that is kept."""
    return isinstance(value, _LEADING)


def reached_from(
    modules: Sequence[tuple[str, nn.Module]], kinds: Mapping[type, str], held: Container[int] = ()
) -> list[Reached]:
    """What the given modules, by path, reach outside of themselves, each place once, with the first that reaches it.

    `kinds` are the classes of plain objects that modules hold, with the path of a module; `held` tells the functions
    by `id` that modules hold, of which only the code is followed.
    """
    walk = _Walk(held)
    for path, module in modules:
        walk.module(path, module)
    for kind, path in kinds.items():
        walk.methods_of(path, kind, {name for base in kind.__mro__ for name in vars(base)})
    return walk.found


class _Walk:
    """One walk through the code of a model."""

    def __init__(self, held: Container[int]) -> None:
        self._held = held
        self.found: list[Reached] = []
        self._seen: set[object] = set()
        self._globals: dict[int, set[str]] = {}

    def module(self, path: str, module: nn.Module) -> None:
        """Follow the code of a module's class, from `forward` on, and the functions that the module holds itself."""
        for value in list(vars(module).values()):
            if not isinstance(value, _PLAIN):
                for function in _functions_in(value):
                    self.function(path, function)
        self.methods_of(path, type(module), {"forward", "__call__"})

    def methods_of(self, path: str, kind: type, names: set[str]) -> None:
        """Follow the methods of `kind` with these names, and those whose names they use."""
        if kind in self._seen or not any(is_own_class(base) for base in kind.__mro__):
            return
        self._seen.add(kind)
        pending = set(names)
        while pending:
            used: set[str] = set()
            for base in kind.__mro__:
                if is_own_class(base):
                    self._class(path, base)
                    used |= self._methods(path, base, pending)
            pending = used - names
            names |= used

    def _class(self, path: str, kind: type) -> None:
        if ("class", kind) not in self._seen:
            self._seen.add(("class", kind))
            self.found.append(Reached(path, f"{kind.__name__}.{{}}", class_attributes_of(kind)))

    def _methods(self, path: str, kind: type, names: set[str]) -> set[str]:
        """The names that the methods of `kind` with these names use."""
        used: set[str] = set()
        for name in sorted(names & vars(kind).keys()):
            for function in _functions_in(vars(kind)[name]):
                used |= self.function(path, function)
        return used

    def function(self, path: str, function: types.FunctionType) -> set[str]:
        """Note what `function` reaches, and what functions reach that it uses; the names that they use."""
        if function in self._seen or not is_own_function(function):
            return set()
        self._seen.add(function)
        used = _names_in(function.__code__)
        cells = cells_of(function)
        if id(function) not in self._held:
            self._carried(path, function, cells)
        for value in list(cells.values()):
            used |= self._lead(path, value, used)
        self._namespace(path, function.__globals__, used)
        for name in sorted(used & function.__globals__.keys()):
            used |= self._lead(path, function.__globals__[name], used)
        return used

    def _carried(self, path: str, function: types.FunctionType, cells: Entries) -> None:
        """Note what `function` carries along: its closure, its attributes, its default values."""
        label = f"{{}} ({function.__name__})"
        defaults = function.__defaults__ or ()
        positional = function.__code__.co_varnames[: function.__code__.co_argcount]
        given = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
        for entries in (cells, attributes_of(function), given, function.__kwdefaults__):
            if entries:
                self.found.append(Reached(path, label, entries))

    def _lead(self, path: str, value: object, names: set[str]) -> set[str]:
        """Follow a function, a class or a file of the user's own that code refers to."""
        used: set[str] = set()
        for function in _functions_in(value):
            used |= self.function(path, function)
        if isinstance(value, type) and is_own_class(value) and not issubclass(value, nn.Module):
            self._class(path, value)
            used |= self._methods(path, value, names)
        elif isinstance(value, types.ModuleType) and _is_own_file(value) and ("file", value) not in self._seen:
            self._seen.add(("file", value))
            self._namespace(path, vars(value), names)
            for name in sorted(names & vars(value).keys()):
                used |= self._lead(path, vars(value)[name], names)
        return used

    def _namespace(self, path: str, namespace: dict[str, Any], names: set[str]) -> None:
        """Note the globals with these names, but for the code among them."""
        known = self._globals.setdefault(id(namespace), set())
        new = {name for name in names - known if not name.startswith("__") and not leads_on(namespace.get(name))}
        known |= new
        if new:
            self.found.append(Reached(path, "{} (global)", globals_of(namespace, new)))


def _functions_in(value: Any) -> Iterator[types.FunctionType]:
    """The functions that `value` is, or wraps: methods of all kinds, properties, decorated functions."""
    if isinstance(value, types.FunctionType):
        yield value
        if hasattr(value, "__wrapped__"):
            yield from _functions_in(value.__wrapped__)
    elif isinstance(value, staticmethod | classmethod | types.MethodType):
        yield from _functions_in(value.__func__)
    elif isinstance(value, property | functools.cached_property):
        yield from _functions_in(value.fget if isinstance(value, property) else value.func)
    elif isinstance(value, functools.partial):
        yield from _functions_in(value.func)
    elif isinstance(value, _CACHED):
        yield from _functions_in(value.__wrapped__)


def _names_in(code: types.CodeType) -> set[str]:
    """The names that `code` and the functions inside it use: globals, and attributes of anything."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names


def _is_own_file(module: types.ModuleType) -> bool:
    name = getattr(module, "__file__", None)
    return name is not None and is_user_file(name) and not is_installed(name)
