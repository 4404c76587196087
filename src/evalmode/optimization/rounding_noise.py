"""Run a model as if every operator had rounded a little otherwise: how much rounding alone can move its outputs.

One run has one rounding error, which may be small by luck. Moving every result by at most one unit in its last place
shows what errors the same arithmetic makes in another order, and which samples jump (a router near a tie).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from evalmode.observe.operators import is_view, written_tensors

__all__ = ["RoundingNoise", "nudged"]

_WHOLE = 2.0**20  # a whole number below this is exact in every dtype that counts with it: positions, sizes, masks
_MOVES_DATA = frozenset(
    (
        "aten::_to_copy",
        "aten::cat",
        "aten::clone",
        "aten::constant_pad_nd",
        "aten::copy",
        "aten::embedding",
        "aten::gather",
        "aten::index",
        "aten::index_select",
        "aten::masked_fill",
        "aten::max_pool2d_with_indices",
        "aten::relu",
        "aten::repeat",
        "aten::roll",
        "aten::scatter",
        "aten::sort",
        "aten::stack",
        "aten::topk",
        "aten::where",
    )
)
"""Operators that round nothing: their results are values that they were given."""


def nudged(values: Tensor, generator: torch.Generator) -> Tensor:
    """`values` with each floating number moved by at most one unit in its last place; whole numbers stay.

    Example:
        >>> moved = nudged(torch.tensor([0.0, 1.0, 0.3]), torch.Generator().manual_seed(1))
        >>> moved[:2].tolist(), bool((moved[2] - 0.3).abs() <= 3e-8)
        ([0.0, 1.0], True)

    Source: Vignes, "A stochastic arithmetic for reliable scientific computation", Math. Comput. Simul. 35 (1993).
    """
    if values.is_nested or values.layout is not torch.strided:
        return values
    if not (values.is_floating_point() or values.is_complex()):
        return values
    if values.is_complex():
        return torch.view_as_complex(nudged(torch.view_as_real(values.resolve_conj()), generator).contiguous())
    step = torch.finfo(values.dtype).eps / 2
    drawn = _thirds(values.numel(), generator).view(values.shape)
    moved = drawn.to(values.device, values.dtype).mul_(step).mul_(values).add_(values)
    whole = (values == values.round()) & (values.abs() < _WHOLE)
    return torch.where(whole | ~moved.isfinite(), values, moved)


def _thirds(count: int, generator: torch.Generator) -> Tensor:
    """So many of -1, 0 and 1, each in about a third of the places: eight from every random number."""
    numbers = torch.empty(-(-count // 8), dtype=torch.int64, device=generator.device)
    high = torch.iinfo(torch.int64).max
    octets = numbers.random_(-high, high, generator=generator).view(torch.int8)[:count]
    return (octets > 42).to(torch.int8) - (octets < -42).to(torch.int8)


class RoundingNoise(TorchDispatchMode):
    """Inside this context every operator that rounds gives results moved by at most one unit in the last place.

    The noise has a stream of its own; the global ones are not touched.
    """

    supports_higher_order_operators = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        outputs = func(*args, **named)
        if isinstance(func, torch._ops.HigherOrderOperator):  # noqa: SLF001 - cond and the like have no schema
            return outputs
        moves = func._schema.name in _MOVES_DATA  # noqa: SLF001 - the documented schema of an OpOverload
        if moves or is_view(func) or written_tensors(func, args, named):
            return outputs
        return pytree.tree_map_only(torch.Tensor, lambda leaf: nudged(leaf, self._generator), outputs)
