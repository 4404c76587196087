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
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)


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
    paths = discovery.paths()
    seen = {id(tensor) for _, tensor in registered_weights(model)}
    found: list[tuple[str, torch.Tensor]] = []
    for module in discovery.modules:
        path = paths.get(id(module), type(module).__name__)
        own = (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
            *(() if isinstance(module, torch.jit.ScriptModule) else _held(module)),
        )
        for name, tensor in own:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found.append((f"{path}.{name}" if path else name, tensor))
    return found


def _held(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights among what `module` itself and its class hold without registration."""
    skipped = {"_parameters", "_buffers", "_modules"}
    plain = not module.__dict__.get("_forward_pre_hooks")
    attributes = {name: value for kind in _own_classes(type(module)) for name, value in vars(kind).items()}
    attributes = {name: value for name, value in attributes.items() if not isinstance(value, types.FunctionType)}
    attributes |= {name: value for name, value in module.__dict__.items() if not name.endswith("_hooks")}
    seen: set[int] = set()
    for name, value in attributes.items():
        if name not in skipped and not name.startswith("__"):
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
        if isinstance(item, nn.Module | str | bytes | int | float | type | None) or id(item) in seen:
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


def _own_classes(kind: type) -> list[type]:
    """The classes of a module below `nn.Module`, the most general one first."""
    return [base for base in reversed(kind.__mro__) if base is not nn.Module and issubclass(base, nn.Module)]


@functools.lru_cache(maxsize=1024)
def _used_by(kind: type) -> _Use:
    """What the methods of a class do with the names of attributes, but for those that make an instance."""
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


@functools.lru_cache(maxsize=4096)
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
