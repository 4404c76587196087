"""A model's state, kept and put back: contents of tensors, `.grad`, flags, hooks, attributes, streams, grad mode.

Nothing is written unless it changed, so an untouched parameter keeps its version counter and its storage.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from evalmode.mode.discover import discover
from evalmode.observe.streams import StreamStates, read_streams, stream_differences, write_streams
from evalmode.observe.tree import same_bits

__all__ = ["ModelState", "StateChange", "read_state"]

_CONTAINERS = (dict, list, set, collections.deque)
_DEPTH = 4


@dataclass(frozen=True, slots=True)
class StateChange:
    """One thing that is not as it was: its kind (`flag`, `stream`, `tensor`, `gradient`, `grad mode`, `attribute`),
    the path of the module that owns it, and its name."""

    kind: str
    module: str
    name: str

    @property
    def path(self) -> str:
        """The full name: module path and attribute."""
        return ".".join(part for part in (self.module, self.name) if part)


@dataclass(slots=True)
class _KeptTensor:
    """A tensor, the storage it had, a copy of its contents, and its `.grad`."""

    owner: str
    name: str
    tensor: torch.Tensor
    storage: torch.Tensor
    contents: torch.Tensor
    requires_grad: bool
    gradient: torch.Tensor | None
    gradient_contents: torch.Tensor | None
    version: int


@dataclass(slots=True)
class ModelState:
    """The state of a model at one moment; `read_state` makes it."""

    attributes: list[tuple[str, nn.Module, dict[str, Any]]]
    containers: list[tuple[str, str, Any, Any]]
    tensors: list[_KeptTensor]
    streams: StreamStates
    grad_enabled: bool

    def changes(self) -> list[StateChange]:
        """What differs from this state now."""
        found: list[StateChange] = []
        for path, module, before in self.attributes:
            found.extend(_attribute_changes(path, module, before))
        found.extend(
            StateChange("attribute", path, name)
            for path, name, container, contents in self.containers
            if not _same_items(container, contents)
        )
        for kept in self.tensors:
            if _tensor_changed(kept):
                found.append(StateChange("tensor", kept.owner, kept.name))
            if _gradient_changed(kept):
                found.append(StateChange("gradient", kept.owner, f"{kept.name}.grad"))
        found.extend(StateChange("stream", "", name) for name in stream_differences(self.streams, read_streams()))
        if torch.is_grad_enabled() != self.grad_enabled:
            found.append(StateChange("grad mode", "", "grad mode"))
        return found

    def put_back(self, *, streams: bool = True, quick: bool = False) -> None:
        """Bring everything back that differs. `quick` trusts the version counters of parameters, between passes."""
        for _, module, before in self.attributes:
            _restore_attributes(module, before)
        for _, _, container, contents in self.containers:
            if not _same_items(container, contents):
                _refill(container, contents)
        for kept in self.tensors:
            if not (quick and _is_untouched(kept)):
                _restore_tensor(kept)
                kept.version = _version(kept.tensor)
            if _gradient_changed(kept):
                _restore_gradient(kept)
        if streams:
            write_streams(self.streams)
        torch.set_grad_enabled(self.grad_enabled)


def read_state(model: nn.Module) -> ModelState:
    """Read the state of `model`, hidden modules included. Tensors are copied."""
    found = discover(model)
    paths = found.paths()
    attributes: list[tuple[str, nn.Module, dict[str, Any]]] = []
    containers: list[tuple[str, str, Any, Any]] = []
    tensors: dict[int, _KeptTensor] = {}
    seen: set[int] = set()
    for module in found.modules:
        path = paths.get(id(module), "")
        own = module.__dict__
        attributes.append((path, module, dict(own)))
        for name, value in own.items():
            _keep(value, path, name, containers, tensors, seen, 0)
    return ModelState(attributes, containers, list(tensors.values()), read_streams(), torch.is_grad_enabled())


def _keep(
    value: Any,
    path: str,
    name: str,
    containers: list[tuple[str, str, Any, Any]],
    tensors: dict[int, _KeptTensor],
    seen: set[int],
    depth: int,
) -> None:
    if isinstance(value, torch.Tensor):
        if id(value) not in tensors and _is_copyable(value):
            tensors[id(value)] = _kept(path, name, value)
        return
    if depth > _DEPTH or isinstance(value, nn.Module) or id(value) in seen:
        return
    if isinstance(value, tuple):
        items: list[Any] = list(value)
    elif isinstance(value, _CONTAINERS):
        seen.add(id(value))
        contents = dict(value) if isinstance(value, dict) else list(value)
        containers.append((path, name, value, contents))
        items = list(contents.values()) if isinstance(contents, dict) else contents
    else:
        return
    registered = depth == 0 and name in ("_parameters", "_buffers")
    keys = list(value) if isinstance(value, dict) else range(len(items))
    for key, item in zip(keys, items, strict=True):
        _keep(item, path, str(key) if registered else f"{name}[{key!r}]", containers, tensors, seen, depth + 1)


def _is_copyable(tensor: torch.Tensor) -> bool:
    lazy = is_lazy(tensor)
    return not lazy and not tensor.is_meta and tensor.layout is torch.strided


def _kept(path: str, name: str, tensor: torch.Tensor) -> _KeptTensor:
    gradient = tensor.grad if tensor.is_leaf else None
    return _KeptTensor(
        owner=path,
        name=name,
        tensor=tensor,
        storage=tensor.detach(),
        contents=tensor.detach().clone(),
        requires_grad=tensor.requires_grad,
        gradient=gradient,
        gradient_contents=gradient.detach().clone() if gradient is not None else None,
        version=_version(tensor),
    )


def _version(tensor: torch.Tensor) -> int:
    """The version counter of a parameter; -1 for what is always compared by content."""
    if tensor.is_inference() or not isinstance(tensor, nn.Parameter):
        return -1
    return int(tensor._version)  # noqa: SLF001 - torch offers no public reader


def _attribute_changes(path: str, module: nn.Module, before: dict[str, Any]) -> list[StateChange]:
    now = module.__dict__
    changed = [
        name
        for name in before.keys() | now.keys()
        if name not in before or name not in now or now[name] is not before[name]
    ]
    found = []
    for name in sorted(changed):
        if name == "training":
            if now.get(name) != before.get(name):
                found.append(StateChange("flag", path, name))
        elif name not in before or name not in now or not _same_plain(now[name], before[name]):
            found.append(StateChange("attribute", path, name))
    return found


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


def _same_storage(kept: _KeptTensor) -> bool:
    tensor, storage = kept.tensor, kept.storage
    return (
        tensor.data_ptr() == storage.data_ptr()
        and tensor.shape == storage.shape
        and tensor.dtype == storage.dtype
        and tensor.stride() == storage.stride()
    )


def _is_untouched(kept: _KeptTensor) -> bool:
    return kept.version >= 0 and kept.version == _version(kept.tensor) and _same_storage(kept)


def _tensor_changed(kept: _KeptTensor) -> bool:
    if kept.tensor.requires_grad != kept.requires_grad:
        return True
    return not same_bits(kept.tensor.detach(), kept.contents)


def _restore_tensor(kept: _KeptTensor) -> None:
    with torch.no_grad():
        if not _same_storage(kept):
            kept.tensor.data = kept.storage
        if not same_bits(kept.storage, kept.contents):
            kept.storage.copy_(kept.contents)
    if kept.tensor.is_leaf and kept.tensor.requires_grad != kept.requires_grad:
        kept.tensor.requires_grad_(kept.requires_grad)


def _gradient_changed(kept: _KeptTensor) -> bool:
    gradient = kept.tensor.grad if kept.tensor.is_leaf else None
    if gradient is not kept.gradient:
        return True
    return (
        gradient is not None
        and kept.gradient_contents is not None
        and not same_bits(gradient.detach(), kept.gradient_contents)
    )


def _restore_gradient(kept: _KeptTensor) -> None:
    kept.tensor.grad = kept.gradient
    if kept.gradient is not None and kept.gradient_contents is not None:
        with torch.no_grad():
            kept.gradient.detach().copy_(kept.gradient_contents)
