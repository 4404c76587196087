"""The one rule for calling a model with a batch.

A mapping (a tokeniser's `BatchEncoding` included) is called as `model(**batch)`, a tuple as `model(*batch)`, anything
else, a list included, as `model(batch)`. A `forward=` function overrides the rule: it is called as
`forward(model, batch)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from evalmode.errors import BatchError, EvalmodeError, ModelRunError
from evalmode.observe.tree import describe

__all__ = ["arguments_of", "call", "reason_of", "require_batch"]

_SHOWN = 8  # arguments of a call in a message


def arguments_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and named arguments that the rule makes of `batch`.

    Example:
        >>> arguments_of({"ids": 1})
        ((), {'ids': 1})
        >>> arguments_of((1, 2))
        ((1, 2), {})
        >>> arguments_of([1, 2])
        (([1, 2],), {})
    """
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple):
        return tuple(batch), {}
    return (batch,), {}


def call(model: Callable[..., Any], batch: Any, forward: Callable[[Any, Any], Any] | None = None) -> Any:
    """The outputs of `model` on `batch`, called by the rule.

    Raises:
        BatchError: the batch cannot be meant for this model.
        ModelRunError: the model failed for a reason of its own, which is kept as the cause.
    """
    require_batch(model, batch, forward)
    try:
        if forward is not None:
            return forward(model, batch)
        positional, named = arguments_of(batch)
        return model(*positional, **named)
    except EvalmodeError:
        raise
    except Exception as error:
        _explain_target(model, batch, forward, error)
        raise ModelRunError(
            f"{_name(model)} failed on a batch {describe(batch)}: {type(error).__name__}: {reason_of(error)}",
            expected=f"a model that runs; it was called as {_call_text(batch, forward)}",
            fix="see the model's own error above; if the call is wrong, pass forward=lambda model, batch: ...",
        ) from error


def reason_of(error: BaseException) -> str:
    r"""What an error says, in one line: the first one, or the last after a traceback that it quotes (TorchScript's).

    Example:
        >>> reason_of(RuntimeError("sizes differ\nException raised from check at Check.h:12"))
        'sizes differ'
        >>> reason_of(RuntimeError("failed in the interpreter.\nTraceback (most recent call last):\nValueError: no"))
        'ValueError: no'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return lines[-1] if any(line.startswith("Traceback ") for line in lines) else lines[0]


def require_batch(model: Callable[..., Any], batch: Any, forward: Callable[[Any, Any], Any] | None = None) -> None:
    """Refuse what is surely no batch for `model`.

    Raises:
        BatchError: a DataLoader or another iterator, None, an (inputs, target) pair for a model of one argument, or
            arguments that its `forward` does not have.
    """
    if isinstance(batch, DataLoader):
        raise BatchError("got a DataLoader instead of a batch", expected="one batch", fix="next(iter(loader))")
    if isinstance(batch, torch.utils.data.Dataset) and not isinstance(batch, torch.Tensor):
        raise BatchError(
            f"got a dataset ({type(batch).__name__}) instead of a batch",
            expected="one batch",
            fix="next(iter(torch.utils.data.DataLoader(dataset, batch_size=8)))",
        )
    if batch is None:
        raise BatchError("got None instead of a batch", expected="a tensor, a tuple or a mapping of tensors")
    if inspect.isgenerator(batch) or (hasattr(batch, "__next__") and not isinstance(batch, torch.Tensor)):
        raise BatchError(
            f"got an iterator ({type(batch).__name__}) instead of a batch", expected="one batch", fix="next(batches)"
        )
    if forward is not None:
        return
    if isinstance(batch, tuple) and len(batch) == 2 and _takes_one(model) and _looks_like_pair(batch):
        raise BatchError(
            f"got a pair {describe(batch)}, but {_name(model)} takes one input: is it (inputs, target)?",
            expected="the inputs alone",
            fix="inputs, target = batch, then pass inputs",
        )
    signature = _signature(model)
    if signature is None or _wraps_call(model):
        return
    positional, named = arguments_of(batch)
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise BatchError(
            f"{_name(model)} cannot be called as {_call_text(batch, forward)}: {error}",
            expected=f"arguments of forward{signature}",
            fix="a tuple is model(*batch), a mapping is model(**batch); else pass forward=lambda model, batch: ...",
        ) from error


def _explain_target(
    model: Callable[..., Any], batch: Any, forward: Callable[[Any, Any], Any] | None, error: Exception
) -> None:
    """A list pair reaches the model as a list; if the model then fails, the pair is the likelier cause."""
    if forward is None and isinstance(batch, list) and len(batch) == 2 and _looks_like_pair(batch):
        raise BatchError(
            f"{_name(model)} failed on a list {describe(batch)} ({type(error).__name__}): is it [inputs, target]?",
            expected="the inputs alone; a list is passed on as it is, as model(batch)",
            fix="inputs, target = batch, then pass inputs; or tuple(batch) for a model of two inputs",
        ) from error


def _looks_like_pair(batch: Any) -> bool:
    """Two entries, the first a tensor or mapping of inputs, the second a tensor with one row per sample."""
    first, second = batch
    if not isinstance(second, torch.Tensor) or second.dim() == 0:
        return False
    if isinstance(batch, list) and isinstance(first, torch.Tensor) and first.shape[1:] == second.shape[1:]:
        return False  # a list of like tensors is a detection model's batch
    tensors = list(first.values()) if isinstance(first, Mapping) else [first]
    return any(isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == len(second) for value in tensors)


def _takes_one(model: Callable[..., Any]) -> bool:
    """Whether `model` surely takes exactly one positional argument."""
    signature = _signature(model)
    if signature is None:
        return False
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(kind in positional for kind in kinds) == 1


def _signature(model: Callable[..., Any]) -> inspect.Signature | None:
    if isinstance(model, torch.jit.ScriptModule | torch.fx.GraphModule):
        return None
    target = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):  # a builtin, or a wrapper without a signature
        return None


def _wraps_call(model: Callable[..., Any]) -> bool:
    """Forward pre-hooks may change the arguments, so the signature of `forward` is not the whole truth."""
    return isinstance(model, torch.nn.Module) and bool(model._forward_pre_hooks)  # noqa: SLF001 - no public reader


def _name(model: object) -> str:
    return type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", repr(model))


def _call_text(batch: Any, forward: object) -> str:
    if forward is not None:
        return "forward(model, batch)"
    if isinstance(batch, Mapping):
        return "model(" + ", ".join(f"{key}=..." for key in list(batch)[:_SHOWN]) + ")"
    if isinstance(batch, tuple):
        more = f", and {len(batch) - _SHOWN:,} more" if len(batch) > _SHOWN else ""
        return f"model({', '.join('...' for _ in batch[:_SHOWN])}{more})"
    return "model(batch)"
