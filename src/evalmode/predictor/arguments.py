"""From the arguments of a call, as `fast(x)` or `fast(ids=...)`, to the batch that the plan was built with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from evalmode.errors import BatchError
from evalmode.observe.tree import describe
from evalmode.predictor.calling import arguments_of, require_batch
from evalmode.predictor.form import MappingNode, SequenceNode
from evalmode.predictor.plan import Plan

__all__ = ["batch_of_arguments", "batch_of_rule", "call_kind", "parameters_of"]

_SHOWN = 8  # arguments of a call in a message


def parameters_of(model: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the positional parameters of a model's `forward`; empty where they cannot be told.

    Example:
        >>> class Net(torch.nn.Module):
        ...     def forward(self, ids, mask=None, *, scale=1.0):
        ...         return ids
        >>> parameters_of(Net())
        ('ids', 'mask')
    """
    target = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # a builtin, or a graph without a signature
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in positional)


def call_kind(batch: Any, forward: object = None) -> Any:
    """How the calling rule calls a model with `batch`: `mapping`, `tuple`, `single`, or `forward` where that is given.

    Example:
        >>> call_kind({"ids": 1}), call_kind((1, 2)), call_kind([1])
        ('mapping', 'tuple', 'single')
    """
    if forward is not None:
        return "forward"
    return "mapping" if isinstance(batch, Mapping) else "tuple" if isinstance(batch, tuple) else "single"


def batch_of_arguments(plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The batch that a call with these arguments means. Arguments may be given by position or by name.

    Raises:
        BatchError: they cannot be brought into the form of the plan.
    """
    if plan.call in {"single", "forward"}:
        if len(args) == 1 and not kwargs:
            return args[0]
        if not args and len(kwargs) == 1 and plan.call == "single" and plan.parameters[:1] == tuple(kwargs):
            return next(iter(kwargs.values()))
        raise _misfit(plan, args, kwargs, "one argument, the batch")
    names = plan.parameters
    if len(args) == 1 and not kwargs and _is_whole_batch(plan, args[0]):
        stars = "**" if plan.call == "mapping" else "*"
        raise BatchError(
            f"got the batch as one argument: {describe(args[0])}",
            expected=f"its parts, as forward takes them: {plan.signature}",
            fix=f"fast({stars}batch), or fast.predict(batch)",
        )
    if plan.call == "mapping":
        if not args:
            return kwargs
        named = dict(zip(names, args, strict=False))
        if len(args) > len(names) or named.keys() & kwargs.keys():
            raise _misfit(plan, args, kwargs, "inputs by name")
        return {**named, **kwargs}
    if not kwargs:
        return args
    wanted = names[len(args) : len(args) + len(kwargs)]
    if set(wanted) != set(kwargs):
        raise _misfit(plan, args, kwargs, "inputs by position")
    return (*args, *(kwargs[name] for name in wanted))


def _is_whole_batch(plan: Plan, value: Any) -> bool:
    """Whether a lone argument is a batch of the plan's own kind, where its first part is none."""
    form = plan.input_form
    if isinstance(form, MappingNode) and isinstance(value, Mapping):
        taken = zip(form.keys, form.items, strict=True)
        return not any(isinstance(item, MappingNode) for key, item in taken if key in plan.parameters[:1])
    if isinstance(form, SequenceNode) and isinstance(value, tuple | list):
        return not any(isinstance(item, SequenceNode) for item in form.items[:1])
    return False


def batch_of_rule(plan: Plan, batch: Any) -> Any:
    """The batch in the form of the plan, which may have been built with another one: a tuple where now is a mapping.

    Raises:
        BatchError: it is no batch, or none for this plan.
    """
    require_batch(batch_of_rule, batch, forward=_never_called)
    if plan.call == "forward" or plan.call == call_kind(batch):
        return batch
    if plan.call == "single" and isinstance(batch, tuple) and len(batch) == 2:
        raise BatchError(
            f"got a pair {describe(batch)}, but the plan takes one input: is it (inputs, target)?",
            expected=str(plan.signature),
            fix="inputs, target = batch, then pass inputs",
        )
    return batch_of_arguments(plan, *arguments_of(batch))


def _never_called(model: Any, batch: Any) -> Any:  # tells `require_batch` to judge the batch alone
    return batch


def _misfit(plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], expected: str) -> BatchError:
    given = [describe(value) for value in args] + [f"{name}={describe(value)}" for name, value in kwargs.items()]
    if len(given) > _SHOWN:
        given = [*given[:_SHOWN], f"and {len(given) - _SHOWN:,} more"]
    return BatchError(
        f"got a call with ({', '.join(given)})",
        expected=f"{expected}: {plan.signature}",
        fix="call it as the model was called with the batch that the plan was built from",
    )
