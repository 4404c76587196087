"""Run a higher-order operator (cond, while_loop, scan, flex_attention) so that a mode is on in the functions it calls.

torch takes a dispatch mode off the stack while the mode handles an operator, so what the operator's own functions do
would be out of its sight.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from evalmode.mode.dispatch_mode import DispatchMode

__all__ = ["run_inside"]

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd  # noqa: SLF001 - torch offers no public name


def run_inside(mode: TorchDispatchMode, func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """What `func`, a higher-order operator, gives; `mode` is on in every function among its arguments."""

    def with_mode(argument: Any) -> Any:
        if not isinstance(argument, types.FunctionType | types.MethodType | nn.Module):
            return argument

        def calling(*inner: Any, **inner_named: Any) -> Any:
            with mode, _Decomposed():  # type: ignore[no-untyped-call]
                return argument(*inner, **inner_named)

        return calling

    return func(*pytree.tree_map(with_mode, args), **pytree.tree_map(with_mode, named))


class _Decomposed(DispatchMode):
    """Hands composite operators on as what they are made of, as they come outside of a higher-order operator."""

    supports_higher_order_operators = True

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if isinstance(func, torch._ops.OpOverload) and func.has_kernel_for_dispatch_key(_COMPOSITE):  # noqa: SLF001 - the documented class
            with self:
                outputs = func.decompose(*args, **named)
            if outputs is not NotImplemented:
                return outputs
        return func(*args, **named)
