"""A model's state, kept and put back: contents of tensors, `.grad`, flags, hooks, attributes, streams, grad mode.

Attributes of plain objects that a module holds count too. Nothing is written unless it changed, so an untouched
parameter keeps its version counter and its storage.
"""

from __future__ import annotations

import collections
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evalmode.mode.discover import discover
from evalmode.observe.kept_tensor import (
    KeptTensor,
    gradient_changed,
    is_copyable,
    is_untouched,
    keep_tensor,
    restore_gradient,
    restore_tensor,
    tensor_changed,
)
from evalmode.observe.own_generators import OwnGenerator, own_generator
from evalmode.observe.streams import StreamStates, read_streams, stream_differences, write_streams
from evalmode.observe.tree import same_bits

__all__ = ["ABSENT", "Difference", "ModelState", "StateChange", "read_state"]

_CONTAINERS = (dict, list, set, collections.deque)
_REGISTERED = ("_parameters", "_buffers")
_HOOKS = frozenset(name for name in nn.Module().__dict__ if "hooks" in name)
_DEPTH = 4
_SEARCHED = 10_000  # items of one container that are looked into
_OPAQUE_PACKAGES = frozenset((*sys.stdlib_module_names, "builtins", "numpy", "torch")) - {"__main__"}
ABSENT: Any = type("_Absent", (), {"__repr__": lambda self: "nothing"})()
"""The value of what is not there."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """One thing that is not as it was: its kind (`flag`, `stream`, `generator`, `tensor`, `gradient`, `grad mode`,
    `attribute`), the path of the module that owns it, and its name."""

    kind: str
    module: str
    name: str

    @property
    def path(self) -> str:
        """The full name: module path and attribute."""
        return ".".join(part for part in (self.module, self.name) if part)


@dataclass(frozen=True, slots=True)
class Difference:
    """A change of something that a module holds, with what it was and how to read what it is.

    `registered` is `parameter`, `buffer` or `temporary buffer` (not part of `state_dict()`), else empty.
    """

    change: StateChange
    before: Any
    read: Callable[[], Any]
    differs: Callable[[], bool]
    registered: str = ""


@dataclass(slots=True)
class ModelState:
    """The state of a model at one moment; `read_state` makes it."""

    attributes: list[tuple[str, nn.Module, dict[str, Any]]]
    containers: list[tuple[str, str, Any, Any]]
    tensors: list[KeptTensor]
    generators: list[OwnGenerator]
    streams: StreamStates
    grad_enabled: bool

    def changes(self) -> list[StateChange]:
        """What differs from this state now."""
        found = [difference.change for difference in self.differences()]
        found.extend(
            StateChange("gradient", kept.owner, f"{kept.name}.grad") for kept in self.tensors if gradient_changed(kept)
        )
        found.extend(StateChange("stream", "", name) for name in stream_differences(self.streams, read_streams()))
        found.extend(StateChange("generator", own.module, own.name) for own in self.generators if own.moved())
        if torch.is_grad_enabled() != self.grad_enabled:
            found.append(StateChange("grad mode", "", "grad mode"))
        return found

    def differences(self) -> list[Difference]:
        """What the modules hold and is not as it was: flags, tensors and attributes, but no gradients."""
        found: list[Difference] = []
        owners = {path: module for path, module, _ in self.attributes}
        for path, module, before in self.attributes:
            found.extend(_attribute_differences(path, module, before))
        for path, name, container, contents in self.containers:
            if not _same_items(container, contents):
                found.extend(_container_differences(path, name, container, contents, owners[path]))
        found.extend(
            _tensor_difference(kept, _registered(owners.get(kept.owner), kept.name))
            for kept in self.tensors
            if tensor_changed(kept)
        )
        return found

    def put_back(self, *, streams: bool = True, quick: bool = False) -> None:
        """Bring everything back that differs. `quick` trusts the version counters of parameters, between passes."""
        for _, module, before in self.attributes:
            _restore_attributes(module, before)
        for _, _, container, contents in self.containers:
            if not _same_items(container, contents):
                _refill(container, contents)
        for kept in self.tensors:
            if not (quick and is_untouched(kept)):
                restore_tensor(kept)
            if gradient_changed(kept):
                restore_gradient(kept)
        for own in self.generators:
            own.put_back()
        if streams:
            write_streams(self.streams)
        torch.set_grad_enabled(self.grad_enabled)


def read_state(model: nn.Module) -> ModelState:
    """Read the state of `model`, hidden modules included. Tensors are copied."""
    found = discover(model)
    paths = found.paths()
    attributes: list[tuple[str, nn.Module, dict[str, Any]]] = []
    containers: list[tuple[str, str, Any, Any]] = []
    tensors: dict[int, KeptTensor] = {}
    generators: dict[int, OwnGenerator] = {}
    seen: set[int] = set()
    for module in found.modules:
        path = paths.get(id(module), "")
        own = module.__dict__
        attributes.append((path, module, dict(own)))
        for name, value in own.items():
            _keep(value, path, name, containers, tensors, generators, seen, 0)
    return ModelState(
        attributes,
        containers,
        list(tensors.values()),
        list(generators.values()),
        read_streams(),
        torch.is_grad_enabled(),
    )


def _keep(
    value: Any,
    path: str,
    name: str,
    containers: list[tuple[str, str, Any, Any]],
    tensors: dict[int, KeptTensor],
    generators: dict[int, OwnGenerator],
    seen: set[int],
    depth: int,
) -> None:
    if isinstance(value, torch.Tensor):
        if id(value) not in tensors and is_copyable(value):
            tensors[id(value)] = keep_tensor(path, name, value)
        return
    if depth > _DEPTH or isinstance(value, nn.Module) or id(value) in seen:
        return
    held = own_generator(path, name, value)
    if held is not None:
        generators.setdefault(id(value), held)
        return
    if isinstance(value, tuple):
        pairs: list[tuple[Any, Any]] = list(enumerate(value))
    elif isinstance(value, _CONTAINERS):
        seen.add(id(value))
        contents = dict(value) if isinstance(value, dict) else list(value)
        containers.append((path, name, value, contents))
        pairs = list(contents.items()) if isinstance(contents, dict) else list(enumerate(contents))
    elif _is_plain_object(value):
        seen.add(id(value))
        contents = dict(_attributes_of(value))
        containers.append((path, f"{name}.", _attributes_of(value), contents))
        for attribute, item in contents.items():
            _keep(item, path, f"{name}.{attribute}", containers, tensors, generators, seen, depth + 1)
        return
    else:
        return
    registered = depth == 0 and name in _REGISTERED
    for key, item in pairs[:_SEARCHED]:
        _keep(
            item, path, str(key) if registered else f"{name}[{key!r}]", containers, tensors, generators, seen, depth + 1
        )


def _is_plain_object(value: Any) -> bool:
    """An object of the user's with attributes of its own; what libraries of the system keep is theirs."""
    kind = type(value)
    if kind is types.SimpleNamespace:
        return True
    root = str(kind.__module__).partition(".")[0]
    return root not in _OPAQUE_PACKAGES and not isinstance(value, type) and type(_attributes_of(value)) is dict


def _attributes_of(value: Any) -> Any:
    """The attributes of `value`, read without running code of its class; None if it has none."""
    try:
        return object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None


def _attribute_differences(path: str, module: nn.Module, before: dict[str, Any]) -> list[Difference]:
    now = module.__dict__
    changed = [
        name
        for name in before.keys() | now.keys()
        if name not in before or name not in now or now[name] is not before[name]
    ]
    found = []
    for name in sorted(changed):
        kind = "flag" if name == "training" else "attribute"
        difference = _entry_difference(StateChange(kind, path, name), now, name, before.get(name, ABSENT))
        if difference.differs():
            found.append(difference)
    return found


def _entry_difference(change: StateChange, entries: Any, key: Any, before: Any, registered: str = "") -> Difference:
    """The difference of one entry of a dictionary."""

    def read() -> Any:
        return entries.get(key, ABSENT)

    def differs() -> bool:
        now = read()
        if registered and isinstance(now, torch.Tensor) and isinstance(before, torch.Tensor):
            return now is not before and not same_bits(now.detach(), before.detach())
        return now is not before and not _same_plain(now, before)

    return Difference(change, before, read, differs, registered)


def _container_differences(path: str, name: str, container: Any, contents: Any, owner: nn.Module) -> list[Difference]:
    """What differs in a container: an object's attributes (`name.`) and registered tensors singly, else the whole."""
    if name in _HOOKS:  # each hook has a number of its own, so one that is set again is counted, not compared
        count = len(contents)
        change = StateChange("attribute", path, name)
        return [Difference(change, count, lambda: len(container), lambda: len(container) != count)]
    tensors = name in _REGISTERED and owner.__dict__.get(name) is container
    if not (tensors or name == "_modules" or name.endswith(".")):
        return [
            Difference(
                StateChange("attribute", path, name),
                contents,
                lambda: container,
                lambda: not _same_items(container, contents),
            )
        ]
    keys = [key for key in {**contents, **container} if contents.get(key, ABSENT) is not container.get(key, ABSENT)]
    found = []
    for key in keys:
        label = f"{name}{key}" if name.endswith(".") else key
        change = StateChange("tensor" if tensors else "attribute", path, str(label))
        registered = _registered(owner, str(key)) if tensors else ""
        found.append(_entry_difference(change, container, key, contents.get(key, ABSENT), registered))
    return [difference for difference in found if difference.differs()]


def _tensor_difference(kept: KeptTensor, registered: str) -> Difference:
    change = StateChange("tensor", kept.owner, kept.name)
    return Difference(change, kept.contents, lambda: kept.tensor, lambda: tensor_changed(kept), registered)


def _registered(owner: nn.Module | None, name: str) -> str:
    if owner is None or isinstance(owner, torch.jit.ScriptModule):
        return "parameter" if owner is not None else ""
    if name in owner._parameters:  # noqa: SLF001 - where torch registers them
        return "parameter"
    if name not in owner._buffers:  # noqa: SLF001 - as above
        return ""
    return "temporary buffer" if name in owner._non_persistent_buffers_set else "buffer"  # noqa: SLF001 - as above


def _same_plain(first: Any, second: Any) -> bool:
    plain = (bool, int, float, str, bytes, type(None))
    return type(first) is type(second) and isinstance(first, plain) and bool(first == second)


def _restore_attributes(module: nn.Module, before: dict[str, Any]) -> None:
    now = module.__dict__
    if len(now) == len(before) and all(name in now and now[name] is value for name, value in before.items()):
        return
    for name in [name for name in now if name not in before]:
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def _same_items(container: Any, contents: Any) -> bool:
    if len(container) != len(contents):
        return False
    if isinstance(container, dict):
        pairs = zip(container.items(), contents.items(), strict=True)
        return all(key == other and value is kept for (key, value), (other, kept) in pairs)
    if isinstance(container, set):
        return all(item in container for item in contents)
    return all(item is kept for item, kept in zip(container, contents, strict=True))


def _refill(container: Any, contents: Any) -> None:
    container.clear()
    if isinstance(container, dict | set):
        container.update(contents)
    else:
        container.extend(contents)
