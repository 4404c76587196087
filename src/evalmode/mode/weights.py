"""The tensors that a model's answers are made of, by name: what it registers, and what it holds beside registration.

Every parameter and buffer of a module that a list, a closure or an object holds counts, and so does an `nn.Parameter`
anywhere. Another tensor may be a weight or what a pass left behind (a cache, a count, the last attention), and nothing
on it tells which. It counts where code of its module's class reads the name that holds it and none but the constructor
may write there. What forward pre-hooks compute anew for each pass, as `weight_norm` does, does not count.
"""

from __future__ import annotations

import dis
import functools
import types
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from evalmode.mode.discover import CONTAINER_LIMIT, OBJECT_DEPTH, contents_of, discover

__all__ = ["registered_weights", "unregistered_weights"]

_CONSTRUCTORS = frozenset(("__init__", "reset_parameters"))
_STORES = frozenset(("STORE_ATTR", "DELETE_ATTR", "STORE_DEREF"))
_ITEM_STORES = frozenset(("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"))
_CHANGING = frozenset(("append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop", "popleft"))
_BOOKKEEPING = frozenset(nn.Module().__dict__)
_NO_TENSORS = frozenset(
    (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size)
)
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)

_uses: weakref.WeakKeyDictionary[type, _Use] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class _Use:
    """The names that code reads, and those whose values it may change; `any_name` where it reads or sets by text."""

    read: frozenset[str]
    written: frozenset[str]
    reads_any: bool
    writes_any: bool

    def only_reads(self, name: str) -> bool:
        return (self.reads_any or name in self.read) and not self.writes_any and name not in self.written


def registered_weights(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Every parameter and buffer that `model` registers, under each of its names.

    Example:
        >>> [name for name, _ in registered_weights(nn.Linear(1, 1))]
        ['weight', 'bias']
    """
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def unregistered_weights(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The tensors that `model` computes with and does not register, each once.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = [nn.Linear(2, 2)]
        ...         self.scale = torch.ones(2)
        ...
        ...     def forward(self, x):
        ...         return self.layers[0](x) * self.scale
        >>> [name for name, _ in unregistered_weights(Net())]
        ['scale', 'layers[0].weight', 'layers[0].bias']
    """
    discovery = discover(model)
    hidden = discovery.hidden()
    seen = {id(tensor) for _, tensor in registered_weights(model)}
    found: list[tuple[str, torch.Tensor]] = []
    paths: dict[int, str] = {}
    shared: dict[type, dict[str, object]] = {}
    for module in discovery.modules:
        kind = type(module)
        if kind not in shared:
            shared[kind] = _class_attributes(kind)
        own = list(_held(module, shared[kind]))
        if id(module) in hidden:
            own += [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        new = [(name, tensor) for name, tensor in own if id(tensor) not in seen]
        if not new:
            continue
        paths = paths or discovery.paths()
        path = paths.get(id(module), type(module).__name__)
        for name, tensor in new:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found.append((f"{path}.{name}" if path else name, tensor))
    return found


def _held(module: nn.Module, shared: dict[str, object]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights among what `module` itself holds without registration, and its class as `shared`."""
    if isinstance(module, torch.jit.ScriptModule):
        return
    own = module.__dict__
    attributes = {
        name: value for name, value in own.items() if type(value) not in _NO_TENSORS and name not in _BOOKKEEPING
    }
    if not attributes and not shared:
        return
    plain = not own.get("_forward_pre_hooks")
    seen: set[int] = set()
    for name, value in {**shared, **attributes}.items():
        if name not in own or name in attributes:
            yield from _inside(name, value, type(module), plain, seen)


def _inside(name: str, value: object, kind: type, plain: bool, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights in one attribute; `plain` says whether tensors count that are no parameters."""
    pending: list[tuple[str, object, int, bool]] = [(name, value, 0, True)]
    counts: bool | None = None
    while pending:
        label, item, depth, here = pending.pop()
        if isinstance(item, torch.Tensor):
            if isinstance(item, nn.Parameter):
                yield label, item
            elif here and plain and item.grad_fn is None:
                if counts is None:  # `forward` on an instance is read by nobody's name
                    counts = name == "forward" or _used_by(kind).only_reads(name)
                if counts:
                    yield label, item
            continue
        if type(item) in _NO_TENSORS or isinstance(item, nn.Module) or id(item) in seen:
            continue
        contents = contents_of(item)
        if contents is None:
            continue
        seen.add(id(item))
        pieces, _, deeper = contents
        if depth + deeper > OBJECT_DEPTH:
            continue
        here = here and (not deeper or isinstance(item, _FUNCTIONS))
        if here and isinstance(item, types.FunctionType):
            here = _changes_nothing(item.__code__)
        inside = [(label + piece, part, depth + deeper, here) for piece, part in islice(pieces, CONTAINER_LIMIT)]
        pending.extend(reversed(inside))


def _class_attributes(kind: type) -> dict[str, object]:
    """What the classes of a module hold that may be, or hold, a tensor."""
    return {
        name: value
        for base in _own_classes(kind)
        for name, value in vars(base).items()
        if not name.startswith("__") and type(value) not in _NO_TENSORS and not hasattr(type(value), "__get__")
    }


def _own_classes(kind: type) -> list[type]:
    """The classes of a module below `nn.Module`, the most general one first."""
    return [base for base in reversed(kind.__mro__) if base is not nn.Module and issubclass(base, nn.Module)]


def _used_by(kind: type) -> _Use:
    """What the methods of a class do with the names of attributes, but for those that make an instance."""
    known = _uses.get(kind)
    if known is None:
        known = _uses[kind] = _use_of_class(kind)
    return known


def _use_of_class(kind: type) -> _Use:
    uses = [
        _use_of(code)
        for base in _own_classes(kind)
        for name, value in vars(base).items()
        if name not in _CONSTRUCTORS
        for code in _codes_of(value)
    ]
    return _Use(
        frozenset().union(*(use.read for use in uses)),
        frozenset().union(*(use.written for use in uses)),
        any(use.reads_any for use in uses),
        any(use.writes_any for use in uses),
    )


def _codes_of(value: object) -> Iterator[types.CodeType]:
    """The code of a method, also where it is a property, a static method, or decorated."""
    for part in (value, *(getattr(value, name, None) for name in ("__func__", "fget", "func", "__wrapped__"))):
        if isinstance(part, types.FunctionType):
            yield part.__code__


def _changes_nothing(code: types.CodeType) -> bool:
    use = _use_of(code)
    return not use.written and not use.writes_any


@functools.lru_cache(maxsize=1024)
def _use_of(code: types.CodeType) -> _Use:
    """What `code` and the functions inside it read and may write. One that writes into anything may write into all
    that it reads: which of them, the code does not tell."""
    instructions = list(dis.get_instructions(code))
    read = frozenset(code.co_names)
    stored = frozenset(step.argval for step in instructions if step.opname in _STORES)
    changing = any(name in _CHANGING or (name.endswith("_") and not name.endswith("__")) for name in read)
    into = changing or any(step.opname in _ITEM_STORES for step in instructions)
    inner = [_use_of(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return _Use(
        read.union(*(use.read for use in inner)),
        (read if into else stored).union(*(use.written for use in inner)),
        "getattr" in read or any(use.reads_any for use in inner),
        "setattr" in read or any(use.writes_any for use in inner),
    )
