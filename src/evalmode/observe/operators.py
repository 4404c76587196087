"""What an operator's schema says about it: which tensors it writes, and whether it is a pure view."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

__all__ = ["batch_statistics_input", "is_exported", "is_view", "written_tensors"]

_STATISTICS = slice(3, 5)
_TRAINING = 5
_HIDDEN_WRITERS = frozenset(("aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm"))


def is_exported(module: nn.Module) -> bool:
    """Whether `module` is what `ExportedProgram.module()` gives: a graph whose flag means nothing."""
    return isinstance(module, fx.GraphModule) and "eval" in module.__dict__


def is_view(func: Any) -> bool:
    """Whether `func` is a pure view: its outputs alias an argument and nothing is written."""
    schema = func._schema  # noqa: SLF001 - the documented schema of an OpOverload
    return not schema.is_mutable and any(output.alias_info is not None for output in schema.returns)


def batch_statistics_input(func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor | None:
    """What comes into a batch norm that computes its statistics from it; None for every other operator.

    Example:
        >>> x = torch.ones(2, 3)
        >>> operator = torch.ops.aten.native_batch_norm.default
        >>> batch_statistics_input(operator, (x, None, None, None, None, True, 0.1, 1e-5), {}) is x
        True
        >>> batch_statistics_input(operator, (x, None, None, x[0], x[0], False, 0.1, 1e-5), {}) is None
        True
    """
    schema = func._schema  # noqa: SLF001 - the documented schema of an OpOverload
    if "batch_norm" not in schema.name or "backward" in schema.name or not args:
        return None
    if isinstance(args[0], torch.Tensor):
        names = [argument.name for argument in schema.arguments]
        given = dict(zip(names, args, strict=False)) | named
        if given.get("training", given.get("train", "with_update" in schema.name)) is True:
            return args[0]
    return None


def written_tensors(func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that `func` writes, batch norm's running statistics included, which its schema hides.

    Example:
        >>> total = torch.zeros(1)
        >>> [tensor is total for tensor in written_tensors(torch.ops.aten.add_.Tensor, (total, total), {})]
        [True]
    """
    schema = func._schema  # noqa: SLF001 - as above
    if not schema.is_mutable:
        if schema.name in _HIDDEN_WRITERS and len(args) > _TRAINING and args[_TRAINING]:
            return [value for value in args[_STATISTICS] if isinstance(value, torch.Tensor)]
        return []
    found: list[torch.Tensor] = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else named.get(argument.name)
            found.extend(leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))
    return found
