"""Find every module of a model: registered ones, and those held where registration does not look.

`nn.Module` registers a child that is assigned as an attribute. A module in a plain list, tuple, set or dict, in a plain
object, a closure, a bound method or a `functools.partial` is used all the same and never hears of `eval()`.
"""

from __future__ import annotations

import collections
import functools
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from evalmode.errors import NotAModuleError
from evalmode.mode.frozen import FrozenMode

__all__ = ["CONTAINER_LIMIT", "Discovery", "Held", "Truncation", "contents_of", "discover", "require_modules"]

CONTAINER_LIMIT = 10_000
"""How many items of one plain container are searched."""
TOTAL_LIMIT = 1_000_000
"""How many items of plain containers are searched in one discovery."""
OBJECT_DEPTH = 2
"""How many plain objects, closures and partials deep a search goes; containers do not count."""

_BOOKKEEPING = tuple(nn.Module().__dict__)  # what Module.__init__ itself sets, in its order
_BOOKKEEPING_COUNT = len(_BOOKKEEPING)
_BOOKKEEPING_NAMES = frozenset(_BOOKKEEPING)
_OVERRIDE_NAMES = frozenset(("train", "eval"))
_INERT: frozenset[type] = frozenset(
    {
        *(bool, int, float, complex, str, bytes, type(None), type, types.BuiltinFunctionType, types.ModuleType),
        *(torch.dtype, torch.device, torch.Size, torch.Tensor, nn.Parameter),
    }
)
_CODE = frozenset((types.FunctionType, property, classmethod, staticmethod, functools.cached_property))
_OPAQUE_PACKAGES = frozenset((*sys.stdlib_module_names, "builtins", "numpy", "torch"))


@dataclass(frozen=True, slots=True)
class Held:
    """A module found outside registration: which module holds it, and under which label (`.blocks[0]`)."""

    holder: nn.Module
    label: str
    module: nn.Module


@dataclass(frozen=True, slots=True)
class Truncation:
    """A container whose search stopped early: the module that holds it, its label, and its size."""

    holder: nn.Module
    label: str
    size: int
    searched: int


@dataclass(slots=True)
class Discovery:
    """Every module reached from the given models, each once, holders before what they hold.

    `unusual` are the modules whose class or instance overrides `train` or `eval`, whose flag is not a plain attribute,
    or that carry a compiled graph.
    """

    roots: tuple[nn.Module, ...]
    modules: list[nn.Module] = field(default_factory=list)
    unusual: list[nn.Module] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    truncated: list[Truncation] = field(default_factory=list)

    def paths(self) -> dict[int, str]:
        """The path of each module, by `id`: `encoder.blocks.0` if registered, `encoder.blocks[0]` if held.

        A registered path is preferred to a held one. With several models the paths of all but the first start with
        their position (`models[1].encoder`).
        """
        found: dict[int, str] = {}
        for position, root in enumerate(self.roots):
            _name_registered(root, f"models[{position}]" if position else "", found)
        remaining = self.held
        while remaining:
            later = []
            for held in remaining:
                if id(held.holder) not in found:  # its holder is itself held, by a module not named yet
                    later.append(held)
                elif id(held.module) not in found:
                    path = (found[id(held.holder)] + held.label).removeprefix(".")
                    _name_registered(held.module, path, found)
            if len(later) == len(remaining):
                break
            remaining = later
        return found

    def registered(self) -> set[int]:
        """The `id` of every module that `nn.Module.modules()` of the roots reaches."""
        reached: set[int] = set()
        stack: list[nn.Module | None] = list(self.roots)
        while stack:
            module = stack.pop()
            if module is not None and id(module) not in reached:
                reached.add(id(module))
                stack.extend(_children(module).values())
        return reached

    def hidden(self) -> set[int]:
        """The `id` of every module that `eval()` of the roots does not reach."""
        if not self.held:
            return set()
        registered = self.registered()
        return {id(module) for module in self.modules} - registered


def require_modules(models: Sequence[object], caller: str) -> tuple[nn.Module, ...]:
    """The models as given, or an error that says what they are instead.

    Raises:
        NotAModuleError: something is not a `torch.nn.Module` instance, or its `__init__` never ran.
    """
    for model in models:
        if isinstance(model, nn.Module):
            if "_modules" not in model.__dict__ and not isinstance(model, torch.jit.ScriptModule):
                raise NotAModuleError(
                    f"{caller} got a {type(model).__name__} whose nn.Module part was never initialised",
                    fix=f"call super().__init__() first in {type(model).__name__}.__init__",
                )
            continue
        expected, fix = "a torch.nn.Module instance", None
        if model is None:
            got, fix = "None", "does the function that builds the model return it?"
        elif isinstance(model, type) and issubclass(model, nn.Module):
            got, fix = f"the class {model.__name__}", f"make an instance: {model.__name__}(...)"
        elif isinstance(model, torch.export.ExportedProgram):
            got, fix = "an ExportedProgram", "pass program.module(), which is an nn.Module"
        elif isinstance(model, types.FunctionType | types.MethodType):
            got, fix = (
                f"the function {model.__qualname__}",
                f"pass the model; as a decorator write @{caller}(model), with the model in the parentheses",
            )
        elif isinstance(model, list | tuple | set | dict):
            got, fix = f"a {type(model).__name__}", f"pass several models as {caller}(first, second)"
        else:
            got = f"a {type(model).__name__}"
        raise NotAModuleError(f"{caller} got {got}", expected=expected, fix=fix)
    return tuple(model for model in models if isinstance(model, nn.Module))


def discover(*roots: nn.Module) -> Discovery:
    """Every module reached from `roots` through registration, attributes and plain containers.

    Cycles and shared modules are met once. One plain container is searched up to `CONTAINER_LIMIT` items and all of
    them together up to `TOTAL_LIMIT`; where that cuts a search short, `truncated` says so.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.blocks = [nn.Linear(2, 2)]
        >>> net = Net()
        >>> found = discover(net)
        >>> found.paths()[id(net.blocks[0])]
        'blocks[0]'
    """
    result = Discovery(roots)
    modules, unusual = result.modules, result.unusual
    seen: set[int] = set()
    plain: dict[type, bool] = {}
    search = _Search(result)
    stack: list[nn.Module | None] = list(reversed(roots))
    while stack:  # the hot loop of every switch: about 1.5 microseconds a module
        module = stack.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        modules.append(module)
        kind = type(module)
        if kind not in plain:
            plain[kind] = _is_plain(kind)
            for name, value in _class_attributes(kind):
                search.attribute(module, name, value, stack)
        odd = not plain[kind]
        own = module.__dict__
        if tuple(islice(own, _BOOKKEEPING_COUNT)) == _BOOKKEEPING:
            attributes: Iterable[tuple[str, object]] = ()
            if not _INERT.issuperset(map(type, islice(own.values(), _BOOKKEEPING_COUNT, None))):
                attributes = islice(own.items(), _BOOKKEEPING_COUNT, None)
        else:  # attributes set before super().__init__(), or an old checkpoint
            attributes = [(name, value) for name, value in own.items() if name not in _BOOKKEEPING_NAMES]
            odd = odd or "training" not in own
        for name, value in attributes:
            cls = type(value)
            if cls in _INERT or (cls is tuple and _INERT.issuperset(map(type, value))):  # type: ignore[call-overload]
                continue
            if name in _OVERRIDE_NAMES:
                odd = odd or cls is not FrozenMode
                continue
            if cls is types.MethodType and isinstance(module, torch.jit.ScriptModule):
                continue  # `__dir__` and the like, bound to the module that was scripted
            search.attribute(module, name, value, stack)
        if odd:
            unusual.append(module)
        children = _children(module)
        if children:
            stack.extend(reversed(list(children.values())))
    return result


def _name_registered(module: nn.Module, path: str, found: dict[int, str]) -> None:
    """Give `module` and what is registered below it a path each, nearest first, unless they have one."""
    pending = collections.deque([(module, path)])
    while pending:
        module, path = pending.popleft()
        if id(module) in found:
            continue
        found[id(module)] = path
        for name, child in _children(module).items():
            if child is not None:
                pending.append((child, f"{path}.{name}" if path else name))


def _children(module: nn.Module) -> Mapping[str, nn.Module | None]:
    children: Mapping[str, nn.Module | None] | None = module.__dict__.get("_modules")
    if children is None:  # a traced module keeps them elsewhere
        return dict(module.named_children())
    return children


def _is_plain(kind: type) -> bool:
    """Instances keep their flag in `__dict__`, have torch's own `train` and `eval`, and run no stored graph."""
    return (
        kind.train is nn.Module.train  # type: ignore[attr-defined]
        and kind.eval is nn.Module.eval  # type: ignore[attr-defined]
        and not hasattr(kind, "training")
        and not issubclass(kind, torch.jit.ScriptModule | torch.fx.GraphModule)
    )


class _Search:
    """The search of plain attributes, shared by the modules of one discovery."""

    def __init__(self, result: Discovery) -> None:
        self.result = result
        self.budget = TOTAL_LIMIT
        self.seen: dict[int, object] = {}  # the values are kept so that an id is not used again meanwhile

    def attribute(self, holder: nn.Module, name: str, value: object, found: list[nn.Module | None]) -> None:
        """Look into one attribute of `holder`; modules met are recorded and appended to `found`."""
        pending: list[tuple[str, Any, int]] = [(f".{name}", value, 0)]
        while pending:
            label, item, depth = pending.pop()
            if type(item) in _INERT:
                continue
            if issubclass(type(item), nn.Module):  # by type: a weak proxy or a mock only says that it is one
                if "_modules" in item.__dict__ or isinstance(item, torch.jit.ScriptModule):  # initialised
                    self.result.held.append(Held(holder, label, item))
                    found.append(item)
                continue
            if id(item) in self.seen:
                continue
            contents = contents_of(item)
            if contents is None:
                continue
            self.seen[id(item)] = item
            pieces, size, is_object = contents
            depth += is_object
            if depth > OBJECT_DEPTH:
                continue
            limit = min(CONTAINER_LIMIT, self.budget)
            if size > limit:
                self.result.truncated.append(Truncation(holder, label, size, limit))
            self.budget -= min(size, limit)
            pending.extend(
                (label + piece, inner, depth) for piece, inner in islice(pieces, limit) if type(inner) not in _INERT
            )


def contents_of(value: Any) -> tuple[Iterator[tuple[str, object]], int, bool] | None:
    """What `value` holds, how much, and whether it is an object rather than a container; None if nothing can be."""
    kind = type(value)
    if issubclass(kind, collections.UserDict | collections.UserList):
        value, kind = value.data, type(value.data)
    if issubclass(kind, dict):
        entries = list(islice(dict.items(value), CONTAINER_LIMIT))
        keys = ((f".key({position})", key) for position, (key, _) in enumerate(entries) if isinstance(key, nn.Module))
        items = ((f"[{key!r}]" if isinstance(key, str | int) else f"[{n}]", v) for n, (key, v) in enumerate(entries))
        return iter([*keys, *items]), len(value), False
    if issubclass(kind, list | tuple | collections.deque):
        return ((f"[{position}]", item) for position, item in enumerate(value)), len(value), False
    if issubclass(kind, set | frozenset):
        return (("{}", item) for item in value), len(value), False
    parts: Mapping[str, object]
    if issubclass(kind, functools.partial):
        parts = {"func": value.func, "args": value.args, "keywords": value.keywords}
    elif kind is types.MethodType:
        parts = {"__self__": value.__self__}
    elif kind is types.FunctionType:
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        parts = {name: _cell(cell) for name, cell in cells}
        parts |= {f"default({position})": default for position, default in enumerate(value.__defaults__ or ())}
    else:
        parts = _object_attributes(value)
    return ((f".{name}", item) for name, item in parts.items()), len(parts), True


def _cell(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _object_attributes(value: object) -> Mapping[str, object]:
    """The attributes of an object of a user's class, read without running its code; of other objects, none."""
    kind = type(value)
    if kind is types.SimpleNamespace:
        return vars(value)
    if _is_opaque(kind) or issubclass(kind, type | torch.Tensor):
        return {}
    attributes = dict(value.__dict__) if kind.__dictoffset__ else {}
    for base in kind.__mro__:
        for name, slot in vars(base).items():
            if type(slot) is types.MemberDescriptorType and not name.startswith("__"):
                try:
                    attributes.setdefault(name, slot.__get__(value, kind))
                except AttributeError:  # not set
                    continue
    return attributes


def _class_attributes(kind: type) -> Iterator[tuple[str, object]]:
    """What a user's module class itself holds, `dropout = nn.Dropout()` in its body, which no registration sees."""
    for base in kind.__mro__:
        if base is nn.Module:
            return
        if not _is_opaque(base):
            for name, value in vars(base).items():
                if type(value) not in _INERT and type(value) not in _CODE and not name.startswith("__"):
                    yield name, value


def _is_opaque(kind: type) -> bool:
    return (getattr(kind, "__module__", None) or "builtins").partition(".")[0] in _OPAQUE_PACKAGES
