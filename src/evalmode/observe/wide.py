"""Wide evaluation: run a model in fp64, operator by operator, to tell dependence from rounding.

Every floating operand and cast is widened as each operator runs, so the model's own tensors stay as they are and memory
stays low. Requests for a dtype are widened too: many models cast to fp32 inside, and `.double()` alone is not fp64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from evalmode.mode.dispatch_mode import DispatchMode
from evalmode.observe.higher_order import run_inside
from evalmode.observe.operators import is_view, written_tensors
from evalmode.observe.tree import map_tensors

__all__ = ["WideUnsupportedError", "is_narrow", "wide", "widened"]

_NARROW = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}


class WideUnsupportedError(RuntimeError):
    """An operator has no fp64 form and no decomposition; `operator` names it."""

    def __init__(self, operator: str) -> None:
        self.operator = operator
        super().__init__(f"{operator} has no fp64 form")


def is_narrow(tensor: object) -> bool:
    """Whether `tensor` is a floating or complex tensor below fp64."""
    return isinstance(tensor, torch.Tensor) and tensor.dtype in _NARROW


def widened(tree: Any) -> Any:
    """A copy of `tree` whose floating tensors are fp64.

    Example:
        >>> widened(torch.ones(1)).dtype
        torch.float64
    """
    return map_tensors(_widen, tree)


class wide:  # noqa: N801 - a context manager, named for what the block is
    """Inside this context every operator computes in fp64.

    With `model`, its parameters and buffers are held in fp64 for that time, for a model that compares dtypes in Python
    or takes derivatives; this needs the memory that operator by operator does not.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with torch.no_grad(), wide():
        ...     outputs = layer(torch.ones(1, 2))
        >>> outputs.dtype, layer.weight.dtype
        (torch.float64, torch.float32)

    Raises:
        WideUnsupportedError: an operator has neither an fp64 form nor a decomposition.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model = model
        self._narrow: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __enter__(self) -> Self:
        if self._model is not None:
            self._narrow = [
                (tensor, tensor.data)
                for tensor in (*self._model.parameters(), *self._model.buffers())
                if is_narrow(tensor)
            ]
            for tensor, data in self._narrow:
                tensor.data = _widen(data)
        self._swapped: list[tuple[nn.RNNBase, Any]] = []
        self._handles = [
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after, always_call=True),
        ]
        self._function_mode = _WideFunctions()
        self._dispatch_mode = _WideOperators()  # type: ignore[no-untyped-call]
        self._function_mode.__enter__()  # type: ignore[no-untyped-call]
        self._dispatch_mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dispatch_mode.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._function_mode.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        while self._swapped:
            self._restore(self._swapped[-1][0])
        for tensor, data in self._narrow:
            tensor.data = data

    def _before(self, module: nn.Module, arguments: object) -> None:
        """A recurrent layer compares its weights' dtype with its input's in Python, so it gets wide weights."""
        if not isinstance(module, nn.RNNBase):
            return
        weights = module._flat_weights  # noqa: SLF001 - what RNNBase.forward hands to the kernel
        self._swapped.append((module, weights))
        module._flat_weights = [_widen(w) if w is not None else w for w in weights]  # noqa: SLF001 - as above

    def _after(self, module: nn.Module, arguments: object, output: object) -> None:
        if any(entry[0] is module for entry in self._swapped):
            self._restore(module)

    def _restore(self, module: nn.Module) -> None:
        for position in reversed(range(len(self._swapped))):
            swapped, weights = self._swapped[position]
            if swapped is module:
                swapped._flat_weights = weights  # noqa: SLF001 - as above
                del self._swapped[position]
                return


class _WideFunctions(TorchFunctionMode):
    """Widens operands before composite functions compare their dtypes (prelu, attention, recurrent cells), and tensors
    made of numbers, which may be the limits of a dtype that is wide here."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in _OF_NUMBERS and "out" not in named:
            named = _of_wide_numbers(args, named)
        elif not _writes_in_place(name) and "out" not in named:
            tensors = [leaf for leaf in pytree.tree_leaves((args, named)) if isinstance(leaf, torch.Tensor)]
            if any(is_narrow(tensor) for tensor in tensors) and any(_is_wide(tensor) for tensor in tensors):
                args, named = pytree.tree_map_only(torch.Tensor, _widen, (args, named))
        return func(*args, **named)


def _of_wide_numbers(args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name of a function that makes a tensor of numbers, for one that is wide."""
    given = named.get("dtype")
    if given is None:
        kinds = {type(leaf) for leaf in pytree.tree_leaves((args, named))}
        given = torch.complex64 if complex in kinds else torch.float32 if float in kinds else None
    return {**named, "dtype": _NARROW[given]} if given in _NARROW else named


class _WideOperators(DispatchMode):
    """Widens what every operator computes; views of narrow tensors stay views."""

    supports_higher_order_operators = True

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):  # noqa: SLF001 - cond, while_loop, flex_attention
            wide_args, wide_named = pytree.tree_map_only(torch.Tensor, _widen, (args, named))
            return run_inside(self, func, wide_args, wide_named)
        if is_view(func):
            return func(*args, **named)
        written = written_tensors(func, args, named)
        copies: dict[int, torch.Tensor] = {}

        is_cast = func._schema.name == "aten::_to_copy"  # noqa: SLF001 - it widens: a copy before it would be a second one

        def operand(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and value.dtype in _NARROW and not is_cast:
                if id(value) not in copies:
                    copies[id(value)] = _widen(value)
                return copies[id(value)]
            return _NARROW.get(value, value) if isinstance(value, torch.dtype) else value

        wide_args, wide_named = pytree.tree_map(operand, (args, named))
        outputs = self._run(func, wide_args, wide_named)
        for original in written:
            copy = copies.get(id(original))
            if copy is not None:
                if copy.shape != original.shape:
                    raise WideUnsupportedError(str(func))
                original.copy_(copy)
        if not written:
            return pytree.tree_map_only(torch.Tensor, _widen, outputs)
        back = {id(copies[id(original)]): original for original in written if id(original) in copies}
        return pytree.tree_map_only(torch.Tensor, lambda tensor: back.get(id(tensor), tensor), outputs)

    def _run(self, func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        try:
            run: Callable[..., Any] = _DECOMPOSED.get(func._schema.name, func)  # noqa: SLF001 - the documented schema
            return run(*args, **named)
        except (NotImplementedError, RuntimeError) as error:
            if not _is_missing_kernel(error) and func.namespace in _TORCH:
                raise
            with self:
                outputs = func.decompose(*args, **named)
            if outputs is NotImplemented:
                raise WideUnsupportedError(str(func)) from error
            return outputs


def _grouped_product(
    first: torch.Tensor, second: torch.Tensor, offsets: torch.Tensor | None = None, *rest: Any, **named: Any
) -> torch.Tensor:
    """The product of groups of rows with one matrix each (mixtures of experts), group by group."""
    if offsets is None and first.dim() == second.dim() == 3:
        return torch.bmm(first, second)
    if offsets is None or first.dim() != 2 or second.dim() != 3 or any(value is not None for value in rest[:1]):
        raise WideUnsupportedError("aten._grouped_mm in this form")
    output = first.new_zeros(first.shape[0], second.shape[-1])
    start = 0
    for group, end in enumerate(offsets.tolist()):
        output[start:end] = first[start:end] @ second[group]
        start = end
    return output


def _by_sample(source: torch.Tensor, *rest: Any) -> torch.Tensor:
    """A convolution, one sample at a time on the CPU: torch's fp64 kernel unfolds all that it is given at once, which
    for a 3 x 3 kernel is nine times the input."""
    convolution = torch.ops.aten.convolution.default
    if source.device.type != "cpu" or len(source) < 2:
        return torch.as_tensor(convolution(source, *rest))
    first = convolution(source[:1], *rest)
    if not first.is_contiguous():  # channels last: the whole keeps its strides
        return torch.as_tensor(convolution(source, *rest))
    output = torch.empty((len(source), *first.shape[1:]), dtype=first.dtype, device=first.device)
    output[:1] = first
    for position in range(1, len(source)):
        output[position : position + 1] = convolution(source[position : position + 1], *rest)
    return output


_OF_NUMBERS = frozenset((torch.tensor, torch.as_tensor, torch.asarray, torch.full, torch.scalar_tensor))
_TORCH = frozenset(("aten", "prims", "prim"))  # an operator of another library's that fails in fp64 has no such form
_OPERATORS = torch.library.Library("evalmode", "DEF")  # an operator of its own is one operator to those who watch
_OPERATORS.define(str(torch.ops.aten.convolution.default._schema).removeprefix("aten::").replace("SymInt", "int"))  # noqa: SLF001 - the documented schema
_OPERATORS.impl("convolution", _by_sample, "CompositeExplicitAutograd")
_DECOMPOSED: dict[str, Callable[..., Any]] = {
    "aten::_grouped_mm": _grouped_product,
    "aten::convolution": torch.ops.evalmode.convolution,
}


def _is_missing_kernel(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, NotImplementedError) or "not implemented for" in text or "not supported" in text.lower()


def _writes_in_place(name: str) -> bool:
    return (
        (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__set__") or name.startswith("__i")
    )


def _is_wide(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.float64, torch.complex128)


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    target = _NARROW.get(tensor.dtype)
    if target is None or tensor.layout is not torch.strided:
        return tensor
    return tensor.detach().to(target) if not torch.is_grad_enabled() else tensor.to(target)
