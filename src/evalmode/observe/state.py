"""A model's state, kept and put back: contents of tensors, `.grad`, flags, hooks, attributes, streams, grad mode.

Attributes of plain objects that a module holds count too, and the globals, class attributes and closures that its code
reaches. Nothing is written unless it changed, so an untouched
parameter keeps its version counter and its storage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from evalmode.mode.discover import discover
from evalmode.observe.content import held_tensors
from evalmode.observe.entries import ABSENT
from evalmode.observe.holdings import HOOKS, REGISTERED, Container, Holdings, refill, same_items
from evalmode.observe.kept_tensor import (
    KeptTensor,
    gradient_changed,
    is_untouched,
    restore_gradient,
    restore_tensor,
    tensor_changed,
)
from evalmode.observe.own_generators import OwnGenerator
from evalmode.observe.reached import reached_from
from evalmode.observe.streams import StreamStates, read_streams, stream_differences, write_streams
from evalmode.observe.tree import same_bits

__all__ = ["ABSENT", "Difference", "ModelState", "StateChange", "left_as_found", "read_state"]


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
    containers: list[Container]
    tensors: list[KeptTensor]
    generators: list[OwnGenerator]
    streams: StreamStates
    grad_enabled: bool
    outside_tensors: frozenset[int] = frozenset()

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
        for held in self.containers:
            if not same_items(held.container, held.contents):
                found.extend(_container_differences(held, owners[held.owner]))
        found.extend(
            _tensor_difference(kept, self._registered(owners.get(kept.owner), kept))
            for kept in self.tensors
            if tensor_changed(kept)
        )
        return found

    def _registered(self, owner: nn.Module | None, kept: KeptTensor) -> str:
        outside = id(kept.tensor) in self.outside_tensors
        return "temporary buffer" if outside else _registered(owner, kept.name)

    def put_back(self, *, streams: bool = True, quick: bool = False) -> None:
        """Bring everything back that differs. `quick` trusts the version counters of parameters, between passes.

        Between passes, a tensor that something outside of the model has gained stays there, to be seen.
        """
        for _, module, before in self.attributes:
            _restore_attributes(module, before)
        for held in self.containers:
            if not same_items(held.container, held.contents) and not (quick and held.outside and _gained(held)):
                refill(held.container, held.contents)
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


def read_state(model: nn.Module, *, parameters: bool = True) -> ModelState:
    """Read the state of `model`, hidden modules included. Tensors are copied, `parameters` where they are wanted."""
    found = discover(model)
    paths = found.paths()
    attributes: list[tuple[str, nn.Module, dict[str, Any]]] = []
    held = Holdings(parameters=parameters)
    for module in found.modules:
        path = paths.get(id(module), "")
        own = module.__dict__
        attributes.append((path, module, dict(own)))
        for name, value in own.items():
            held.add(value, path, name)
    for reached in reached_from([(path, module) for path, module, _ in attributes], held.kinds, held.seen):
        held.entries(reached.entries, reached.owner, reached.label, outside=True)
    return ModelState(
        attributes,
        held.containers,
        list(held.tensors.values()),
        list(held.generators.values()),
        read_streams(),
        torch.is_grad_enabled(),
        frozenset(held.outside_tensors),
    )


@contextlib.contextmanager
def left_as_found(model: nn.Module, *, parameters: bool = True, streams: bool = True) -> Iterator[None]:
    """Undo what the block does to the model and the random streams; to `parameters` only where they are copied."""
    state = read_state(model, parameters=parameters)
    try:
        yield
    finally:
        state.put_back(streams=streams)


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


def _container_differences(held: Container, owner: nn.Module) -> list[Difference]:
    """What differs in a container: labelled entries and registered tensors singly, else the whole."""
    path, name, container, contents = held.owner, held.name, held.container, held.contents
    if name in HOOKS:  # each hook has a number of its own, so one that is set again is counted, not compared
        count = len(contents)
        change = StateChange("attribute", path, name)
        return [Difference(change, count, lambda: len(container), lambda: len(container) != count)]
    tensors = name in REGISTERED and owner.__dict__.get(name) is container
    if not (tensors or name == "_modules" or held.label):
        difference = Difference(
            StateChange("attribute", path, name),
            contents,
            lambda: container,
            lambda: not same_items(container, contents),
        )
        return [] if held.outside and _gained(held) else [difference]
    keys = [key for key in {**contents, **container} if contents.get(key, ABSENT) is not container.get(key, ABSENT)]
    found = []
    for key in keys:
        change = StateChange("tensor" if tensors else "attribute", path, held.label.format(key) or str(key))
        registered = _registered(owner, str(key)) if tensors else ""
        found.append(_entry_difference(change, container, key, contents.get(key, ABSENT), registered))
    told = [difference for difference in found if difference.differs()]
    return [one for one in told if not (held.outside and _new_tensors(one.read(), one.before))]


def _gained(held: Container) -> bool:
    """Whether a container holds tensors that its copy does not hold."""
    return not isinstance(held.container, np.ndarray) and _new_tensors(
        dict(held.container) if held.label else held.container, held.contents
    )


def _new_tensors(now: Any, before: Any) -> bool:
    known = {id(tensor) for tensor in held_tensors(before)}
    return any(id(tensor) not in known for tensor in held_tensors(now))


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
