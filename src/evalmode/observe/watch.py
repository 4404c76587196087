"""Watch one forward pass: random draws, graphs built, gradient mode, `backward()`, writes; each with its place.

Two modes work together. The function mode sees the call as the user wrote it (`F.dropout`, attention, an LSTM); the
dispatch mode below sees the operators that really run. A random operator counts only if a generator moved, so a fused
attention with probability 0 or a dropout in evaluation does not.
"""

from __future__ import annotations

import gc
import hashlib
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from evalmode.finding import Place
from evalmode.mode.dispatch_mode import DispatchMode
from evalmode.observe.attribution import ModuleStack, handed_from, place_of
from evalmode.observe.backward_calls import seeing_backward
from evalmode.observe.drawing import is_certain, streams_of
from evalmode.observe.higher_order import run_inside
from evalmode.observe.operators import batch_statistics_input, written_tensors
from evalmode.observe.state import ModelState
from evalmode.observe.tree import tensor_leaves

__all__ = ["BatchStatistics", "Draw", "Event", "Observation", "watch"]

_KEPT_EVENTS = 10_000
_TAGGED = frozenset(("aten", "prims", "prim", "profiler"))  # an operator of another library's seldom says that it draws
_FUNCTIONS_BETWEEN = frozenset(("__get__", "__set__", "size", "dim", "_set_grad_enabled"))


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened once in a forward pass: the operator or function, and where.

    `handed_at` is set on another thread: the line that handed it the work.
    """

    operator: str
    place: Place
    handed_at: Place | None = None


@dataclass(frozen=True, slots=True)
class Draw:
    """A random draw: the operator, the function the user called, the module on top, and where.

    `module_class` is that module's class name; `stranger` refers to it where the model does not hold it; `in_training`
    is its flag. `start` is a digest of the state from which the stream drew; `own_stream` says that the stream is an
    explicit generator, not the process's.
    """

    operator: str
    function: str
    place: Place
    module_class: str
    stranger: weakref.ref[nn.Module] | None
    in_training: bool
    start: bytes
    own_stream: bool

    @property
    def is_outside(self) -> bool:
        """Whether the module lives on outside of the model: it was not built by the pass alone."""
        return self.stranger is not None and self.stranger() is not None


@dataclass(slots=True)
class BatchStatistics:
    """A normalisation by statistics of what came in: how many values a channel had, and whether the result was used.

    `module_class` is the class of the module on top; `reads_weights` says that a parameter came in, not an activation.
    """

    operator: str
    place: Place
    module_class: str
    values: int
    reads_weights: bool
    used: bool = False


@dataclass(slots=True)
class Observation:
    """What one watched forward pass did, in order."""

    draws: list[Draw] = field(default_factory=list)
    graphs: list[Event] = field(default_factory=list)
    gradient_switches: list[Event] = field(default_factory=list)
    backwards: list[Event] = field(default_factory=list)
    writes: list[tuple[str, Event]] = field(default_factory=list)
    batch_statistics: list[BatchStatistics] = field(default_factory=list)
    leaking_module: str | None = None
    operators: int = 0
    outputs: Any = None
    outputs_have_graph: bool = False
    keeps_tensors: bool = False
    made: list[weakref.ref[torch.Tensor]] = field(default_factory=list)

    def note_kept(self) -> None:
        """Note in `keeps_tensors` whether anyone still holds a tensor that the pass made, once its outputs are gone."""
        if any(made() is not None for made in self.made):
            gc.collect()
        self.keeps_tensors = any(made() is not None for made in self.made)
        self.made.clear()


def watch(run: Callable[[], Any], model: nn.Module | None, state: ModelState | None = None) -> Observation:
    """What `run()`, one forward pass of `model`, does. With `state`, writes to what the model owns are told too.

    Example:
        >>> model = nn.Sequential(nn.Dropout(0.5)).train()
        >>> seen = watch(lambda: model(torch.ones(4)), model)
        >>> [draw.place.module for draw in seen.draws]
        ['0']
    """
    observation = Observation()
    owned = {} if state is None else _owned_storages(state)
    with _WatchedStack(model, observation) as stack:
        functions = _FunctionWatch(stack, observation)
        operators = _OperatorWatch(stack, observation, functions, owned)
        with functions, operators, seeing_backward(functions.note_backward):
            observation.outputs = run()
        given = [leaf for _, leaf in tensor_leaves(observation.outputs)]
        operators.note_used(given)
        observation.outputs_have_graph = any(leaf.grad_fn is not None for leaf in given)
    return observation


class _WatchedStack(ModuleStack):
    """Also notes the innermost module that leaves gradients on where they were off."""

    def __init__(self, model: nn.Module | None, observation: Observation) -> None:
        super().__init__(model)
        self._observation = observation

    def switched_on(self) -> str:
        """The innermost module that was entered with gradients off: it is the one that switched them on."""
        off = [running.path for running in self.running if not running.gradients]
        return off[-1] if off else self.top

    def left(self, gradients: bool) -> None:
        if torch.is_grad_enabled() and not gradients and self._observation.leaking_module is None:
            self._observation.leaking_module = self.top


class _Calls(threading.local):
    """The function that is called on this thread, and whether gradients have been switched on there."""

    current = ""
    switched_on = False


class _FunctionWatch(TorchFunctionMode):
    """Sees each call of a torch function as it was written."""

    def __init__(self, stack: _WatchedStack, observation: Observation) -> None:
        super().__init__()
        self.calls = _Calls()
        self._stack = stack
        self._observation = observation

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        calls = self.calls
        before, calls.current = calls.current, name
        try:
            if name == "_set_grad_enabled" and args and args[0] and not torch.is_grad_enabled():
                self._note_switch(name)
            outputs = func(*args, **(kwargs or {}))
            if name not in _FUNCTIONS_BETWEEN and torch.is_grad_enabled():
                self._note_graph(name, outputs)
            return outputs
        finally:
            calls.current = before

    def note_backward(self) -> None:
        """Note a backward pass that begins here."""
        self._observation.backwards.append(Event("backward", place_of(self._stack.top)))

    def _note_switch(self, name: str) -> None:
        if handed_from() is not None and _is_leaving(sys._getframe(2)):  # noqa: SLF001 - the documented way to a stack
            return  # gradients are on where another thread begins
        place = place_of(self._stack.top, within_module=True)
        if place.file or self._stack.running:  # not the end of evalmode's own no_grad
            self._observation.gradient_switches.append(Event(name, place))
            self.calls.switched_on = True

    def _note_graph(self, name: str, outputs: Any) -> None:
        if len(self._observation.graphs) >= _KEPT_EVENTS:
            return
        if torch._C._functorch.peek_interpreter_stack() is not None:  # noqa: SLF001 - torch offers no public reader
            return  # a graph of torch.func's own, which ends with the transform
        for leaf in pytree.tree_leaves(outputs):
            if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None:
                handed_at = None if self.calls.switched_on else handed_from()
                place = place_of(self._stack.switched_on())
                self._observation.graphs.append(Event(name, place, handed_at))
                return


class _OperatorWatch(DispatchMode):
    """Sees each operator that runs."""

    supports_higher_order_operators = True

    def __init__(
        self, stack: ModuleStack, observation: Observation, functions: _FunctionWatch, owned: dict[int, str]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stack = stack
        self._observation = observation
        self._functions = functions
        self._owned = owned
        self._normalised: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(func, torch._ops.HigherOrderOperator):  # noqa: SLF001 - cond, while_loop, flex_attention
            return run_inside(self, func, args, kwargs or {})
        named = kwargs or {}
        self._observation.operators += 1
        if torch.Tag.nondeterministic_seeded in func.tags or func.namespace not in _TAGGED:
            return self._random(func, args, named)
        if self._owned:
            self._note_writes(func, args, named)
        if len(self._normalised):
            self.note_used(pytree.tree_leaves((args, named)))
        outputs = func(*args, **named)
        self._note_made(outputs)
        entering = batch_statistics_input(func, args, named)
        if entering is not None:
            self._note_statistics(func, entering, outputs)
        return outputs

    def _note_made(self, outputs: Any) -> None:
        made = self._observation.made
        for leaf in (outputs,) if isinstance(outputs, torch.Tensor) else pytree.tree_leaves(outputs):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                made.append(weakref.ref(leaf))

    def note_used(self, operands: Sequence[Any]) -> None:
        """Note which results of batch statistics are among `operands`."""
        for operand in operands:
            if isinstance(operand, torch.Tensor) and operand in self._normalised:
                self._normalised.pop(operand).used = True

    def _note_statistics(self, func: Any, entering: torch.Tensor, outputs: Any) -> None:
        if self._functions.calls.current == "instance_norm" or len(self._observation.batch_statistics) >= _KEPT_EVENTS:
            return
        module = self._stack.module
        channels = entering.shape[1] if entering.dim() > 1 else 1
        seen = BatchStatistics(
            operator=str(func),
            place=place_of(self._stack.top),
            module_class=type(module).__name__ if module is not None else "",
            values=entering.numel() // max(channels, 1),
            reads_weights=isinstance(entering, nn.Parameter) or isinstance(entering._base, nn.Parameter),  # noqa: SLF001 - the documented attribute of a view
        )
        self._observation.batch_statistics.append(seen)
        self._normalised[outputs[0] if isinstance(outputs, list | tuple) else outputs] = seen

    def _random(self, func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        generator = named.get("generator")
        watched = streams_of(args, named) if generator is None else [generator]
        before = [stream.get_state() for stream in watched]
        outputs = func(*args, **named)
        self._note_made(outputs)
        moved = any(not torch.equal(old, stream.get_state()) for old, stream in zip(before, watched, strict=True))
        if self._owned:
            self._note_writes(func, args, named)
        if moved and not is_certain(func, args, named) and len(self._observation.draws) < _KEPT_EVENTS:
            start = hashlib.blake2b(b"".join(state.numpy().tobytes() for state in before), digest_size=16).digest()
            self._observation.draws.append(self._draw(func, start, generator is not None))
        return outputs

    def _draw(self, func: Any, start: bytes, own: bool) -> Draw:
        module = self._stack.module
        return Draw(
            operator=str(func),
            function=self._functions.calls.current,
            place=place_of(self._stack.top),
            module_class=type(module).__name__ if module is not None else "",
            stranger=None if module is None or self._stack.top_is_known else weakref.ref(module),
            in_training=bool(getattr(module, "training", False)),
            start=start,
            own_stream=own,
        )

    def _note_writes(self, func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        for tensor in written_tensors(func, args, named):
            name = self._owned.get(_storage(tensor))
            if name is not None and len(self._observation.writes) < _KEPT_EVENTS:
                self._observation.writes.append((name, Event(str(func), place_of(self._stack.top))))


def _is_leaving(frame: FrameType | None) -> bool:
    """Whether a `with` block is being left within the next calls outwards, all of them torch's."""
    for _ in range(4):
        if frame is None or frame.f_code.co_name == "__exit__":
            return frame is not None
        frame = frame.f_back
    return False


def _owned_storages(state: ModelState) -> dict[int, str]:
    names: dict[int, str] = {}
    for kept in state.tensors:
        key = _storage(kept.tensor)
        if key:
            names.setdefault(key, ".".join(part for part in (kept.owner, kept.name) if part))
    return names


def _storage(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # no storage: sparse, or a wrapper
        return 0
