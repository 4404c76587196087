"""What can be checked: a module, an exported program, a predictor, or any callable from a batch to outputs.

Clauses run a module. An exported program gives its own; a compiled module gives the one that it was made from, so that
no batch size compiles anew; everything else is called from a module without parts, and what cannot be seen from outside
is not tested.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import msgspec
import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.utils.dlpack import from_dlpack

from evalmode.certificate import ModelRecord
from evalmode.checking.subject import copied
from evalmode.errors import EvalmodeError
from evalmode.mode.discover import discover, require_modules
from evalmode.observe.fingerprint import model_record
from evalmode.observe.state import ModelState, read_state
from evalmode.observe.tree import leaves, map_leaves
from evalmode.observe.weights import require_weights
from evalmode.predictor.calling import arguments_of, call, require_batch
from evalmode.predictor.protocol import Predictor

__all__ = ["Checkable", "checkable", "written_form"]

Forward = Callable[[Any, Any], Any]
"""How a model is called: `forward(model, batch)`."""


@dataclass(frozen=True, slots=True)
class Checkable:
    """What the clauses run: a module, its batch, and how it is called.

    `opaque` says why the clauses that look inside are not tested; it is empty for a module. `notes` say what was made
    of what was given.
    """

    module: nn.Module
    batch: Any
    forward: Forward | None
    name: str
    opaque: str = ""
    notes: tuple[str, ...] = ()

    def record(self) -> ModelRecord:
        """Which model it is: of a callable, the modules that it holds."""
        if not self.opaque:
            return msgspec.structs.replace(model_record(self.module), name=self.name)
        held = discover(self.module).held
        inside = nn.ModuleList(entry.module for entry in held if entry.holder is self.module)
        record = model_record(inside)
        return msgspec.structs.replace(
            record, name=self.name, modules=record.modules - 1, fingerprint=record.fingerprint if len(inside) else ""
        )


def checkable(model: object, batch: Any, forward: Forward | None = None) -> Checkable:
    """What `check` runs for `model`.

    A callable that is no module is called by the calling rule where its parameters fit the batch, else with the whole
    batch. If the batch holds numpy arrays, it gets arrays; arrays among its outputs count as tensors.

    Raises:
        NotAModuleError: `model` is nothing that can be called, or a class.
        BatchError: the batch cannot be meant for this model.
        UsageError: the model has no weights yet.

    Example:
        >>> checkable(lambda batch: batch * 2, torch.ones(2)).opaque
        'a function is called, not looked into: check the nn.Module itself'
    """
    if isinstance(model, ExportedProgram):
        require_batch(model.module(), batch, forward)
        note = "an exported program: the module that it gives was checked"
        return Checkable(model.module(), batch, forward, "ExportedProgram", notes=(note,))
    if isinstance(model, Predictor):
        return _called(model, batch, forward or _predict, "a predictor", type(model).__name__)
    if not isinstance(model, nn.Module) and callable(model) and not isinstance(model, type):
        kind, name = _kind(model), getattr(model, "__name__", type(model).__name__)
        return _called(model, batch, forward or _by_the_rule_or_whole(model, batch), kind, name)
    (module,) = require_modules((model,), "check")
    original = getattr(module, "_orig_mod", None)
    if isinstance(original, nn.Module) and type(module).__name__ == "OptimizedModule":
        module = original
    require_batch(module, batch, forward)
    _require_weights(module, batch, forward)
    notes = ("compiled: checked as it was written, without its kernels",) if _is_compiled(module, model) else ()
    return Checkable(module, batch, forward, type(module).__name__, notes=notes)


@contextmanager
def written_form() -> Iterator[None]:
    """Whatever is compiled runs as it was written: its kernels have no lines, and each batch size is another graph."""
    with ExitStack() as stack:

        def as_written() -> None:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(warnings.catch_warnings())
            message = "Using `torch.compile\\(module\\)` when there are global hooks"
            warnings.filterwarnings("ignore", message=message)

        if "torch._dynamo" in sys.modules:
            as_written()
        else:  # loading the compiler takes a second, so it waits until the model asks for it
            stack.enter_context(_at_first_compile(as_written))
        yield


@contextmanager
def _at_first_compile(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` before the first `torch.compile` inside this context, torch's own (`torch.cond`) included."""
    compile_ = torch.compile
    lock = threading.Lock()

    @functools.wraps(compile_)
    def compiling(*arguments: Any, **named: Any) -> Any:
        with lock:
            if torch.compile is compiling:
                torch.compile = compile_
                act()
        return compile_(*arguments, **named)

    torch.compile = compiling
    try:
        yield
    finally:
        if torch.compile is compiling:
            torch.compile = compile_


@final
class _Calling(nn.Module):
    """A module without parts that calls something from a whole batch to outputs."""

    def __init__(self, target: Any, forward: Forward | None, arrays: frozenset[str]) -> None:
        super().__init__()
        self.target = target
        self._call = forward
        self._arrays = arrays
        self.training = False

    def forward(self, batch: Any) -> Any:
        if self._arrays:
            batch = map_leaves(lambda path, leaf: _as_array(leaf) if path in self._arrays else leaf, batch)
        outputs = call(self.target, batch, self._call)
        return map_leaves(lambda _, leaf: _as_tensor(leaf), outputs)


def _called(target: Any, batch: Any, forward: Forward | None, kind: str, name: str) -> Checkable:
    require_batch(target, batch, forward)
    arrays = frozenset(path for path, leaf in leaves(batch) if _is_numeric(leaf))
    tensors = map_leaves(lambda _, leaf: _as_tensor(leaf), batch) if arrays else batch
    module = _Calling(target, forward, arrays)
    _hold(module, _modules_around(target))
    met = _modules_that_run(module, tensors)
    _hold(module, {type(inner).__name__: inner for inner in met})
    _hold(module, {f"{type(inner).__name__}_{position}": inner for position, inner in enumerate(met)})
    vars(module)["target"] = vars(module).pop("target")  # last, so that what it holds goes by the names above
    opaque = f"{kind} is called, not looked into: check the nn.Module itself"
    return Checkable(module, tensors, _whole, name, opaque)


def _hold(module: _Calling, parts: Mapping[str, nn.Module]) -> None:
    """Let `module` hold each of `parts` under a name that is free, unless it holds it already."""
    for name, part in parts.items():
        known = any(part is value for value in vars(module).values())
        if not known and not hasattr(module, name):
            vars(module)[name] = part


def _modules_around(target: Any) -> dict[str, nn.Module]:
    """The modules that a function names, or whose method it is."""
    owner = getattr(target, "__self__", None)
    if isinstance(owner, nn.Module):
        return {type(owner).__name__: owner}
    if not inspect.isfunction(target):
        return {}
    around = inspect.getclosurevars(target)
    variables = {**around.globals, **around.nonlocals}
    return {name: value for name, value in variables.items() if isinstance(value, nn.Module)}


def _modules_that_run(module: _Calling, batch: Any) -> list[nn.Module]:
    """The outermost modules not known yet, of those that outlive it, that one pass runs.

    Their tensors are kept as they are met, and put back with everything else. Their flags are not: what is called may
    have switched them for the time of the call.
    """
    before = read_state(module)
    known = {id(part) for part in discover(module).modules}
    met: weakref.WeakKeyDictionary[nn.Module, None] = weakref.WeakKeyDictionary()
    kept: list[ModelState] = []

    def note(inner: nn.Module, _: Any) -> None:
        if id(inner) not in known and not any(inner is part for top in met for part in top.modules()):
            kept.append(replace(read_state(inner), attributes=[], containers=[]))
            met[inner] = None

    handle = register_module_forward_pre_hook(note)
    try:
        with torch.no_grad(), written_form():
            module(copied(batch))
    except EvalmodeError as error:
        error.add_note("before any clause was tested")
        raise
    finally:
        handle.remove()
        for state in kept:
            state.put_back(streams=False)
        before.put_back()
    kept.clear()
    return list(met)


def _whole(module: Any, batch: Any) -> Any:
    return module(batch)


def _predict(predictor: Predictor, batch: Any) -> Any:
    return predictor.predict(batch)


def _by_the_rule_or_whole(function: Callable[..., Any], batch: Any) -> Forward | None:
    """None where the calling rule fits the parameters of `function`, else a call with the whole batch."""
    if not isinstance(batch, Mapping | tuple):
        return None
    try:
        parameters = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature: the rule
        return None
    positional, named = arguments_of(batch)
    fits_rule, fits_whole = _binds(parameters, *positional, **named), _binds(parameters, batch)
    return _whole if fits_whole and not fits_rule else None


def _binds(parameters: inspect.Signature, /, *positional: Any, **named: Any) -> bool:
    try:
        parameters.bind(*positional, **named)
    except TypeError:
        return False
    return True


def _kind(function: Any) -> str:
    if inspect.isroutine(function):
        return "a method" if inspect.ismethod(function) else "a function"
    return f"a {type(function).__name__}"


def _is_numeric(leaf: object) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc"


def _as_tensor(leaf: Any) -> Any:
    """An array as a tensor; `from_numpy` would run a torch operator, and those that the callable runs are counted."""
    return from_dlpack(np.array(leaf)) if _is_numeric(leaf) else leaf


def _as_array(leaf: torch.Tensor) -> np.ndarray[Any, Any]:
    """A tensor as an array; `Tensor.numpy` would run a torch operator too."""
    return np.array(np.from_dlpack(leaf))


def _is_compiled(module: nn.Module, given: object) -> bool:
    parts = (given, *discover(module).modules)
    return any(
        type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None
        for part in parts
    )


def _require_weights(module: nn.Module, batch: Any, forward: Forward | None) -> None:
    """Refuse what has no numbers to compute with; a lazy module that the pass does not reach does not matter."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    require_weights((name, tensor) for name, tensor in tensors if not is_lazy(tensor))
    if not any(is_lazy(tensor) for _, tensor in tensors):
        return
    paths = discover(module).paths()

    def refuse(inner: nn.Module, _: Any) -> None:
        own = (*inner.named_parameters(recurse=False), *inner.named_buffers(recurse=False))
        require_weights((f"{paths.get(id(inner), '')}.{name}".removeprefix("."), tensor) for name, tensor in own)

    before = read_state(module)
    handle = register_module_forward_pre_hook(refuse)
    try:
        with torch.no_grad(), written_form():
            call(module, copied(batch), forward)
    finally:
        handle.remove()
        before.put_back()
