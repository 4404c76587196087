"""What an operator's schema says about it: which tensors it writes, and whether it is a pure view."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

__all__ = ["is_exported", "is_view", "written_tensors"]

_STATISTICS = slice(3, 5)
_TRAINING = 5


def is_exported(module: nn.Module) -> bool:
    """Whether `module` is what `ExportedProgram.module()` gives: a graph whose flag means nothing."""
    return isinstance(module, fx.GraphModule) and "eval" in module.__dict__


def is_view(func: Any) -> bool:
    """Whether `func` is a pure view: its outputs alias an argument and nothing is written."""
    schema = func._schema  # noqa: SLF001 - the documented schema of an OpOverload
    return not schema.is_mutable and any(output.alias_info is not None for output in schema.returns)


def written_tensors(func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that `func` writes, batch norm's running statistics included, which its schema hides.

    Example:
        >>> total = torch.zeros(1)
        >>> [tensor is total for tensor in written_tensors(torch.ops.aten.add_.Tensor, (total, total), {})]
        [True]
    """
    schema = func._schema  # noqa: SLF001 - as above
    if not schema.is_mutable:
        if schema.name == "aten::native_batch_norm" and len(args) > _TRAINING and args[_TRAINING]:
            return [value for value in args[_STATISTICS] if isinstance(value, torch.Tensor)]
        return []
    found: list[torch.Tensor] = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else named.get(argument.name)
            found.extend(leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))
    return found
