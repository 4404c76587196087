"""Follow every operator of a pass with its operands and outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from evalmode.mode.dispatch_mode import DispatchMode
from evalmode.observe.higher_order import run_inside
from evalmode.observe.operators import written_tensors

__all__ = ["Operators", "changed_tensors"]

_UNINITIALISED = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "resize_")


def changed_tensors(
    func: Any, args: tuple[Any, ...], named: dict[str, Any], outputs: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The outputs of `func`, and what a write through a view changes: the tensor that it is a view of."""
    bases = [written._base for written in written_tensors(func, args, named)]  # noqa: SLF001 - the documented attribute
    return [*outputs, *(base for base in bases if base is not None)]


class Operators(DispatchMode):
    """Hands every operator with its operands and outputs to `seen`; a number read out of a tensor comes as a tensor."""

    supports_higher_order_operators = True

    def __init__(self, seen: Callable[[Any, tuple[Any, ...], dict[str, Any], list[torch.Tensor]], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(func, torch._ops.HigherOrderOperator):  # noqa: SLF001 - cond, while_loop, flex_attention
            return run_inside(self, func, args, kwargs or {})
        outputs = func(*args, **(kwargs or {}))
        tensors = [
            leaf if isinstance(leaf, torch.Tensor) else torch.tensor(float(leaf), dtype=torch.float64)
            for leaf in pytree.tree_leaves(outputs)
            if isinstance(leaf, torch.Tensor | bool | int | float)
        ]
        if func._schema.name.removeprefix("aten::") not in _UNINITIALISED:  # noqa: SLF001 - the documented schema
            self._seen(func, args, kwargs or {}, tensors)
        return outputs
