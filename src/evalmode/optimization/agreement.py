"""Whether two answers are the same function's: within rounding, on the same inputs and on others of their kind."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evalmode.observe.batching import difference

__all__ = ["redrawn", "same_results"]

_MARGIN = {torch.float64: 1e-9, torch.float32: 1e-4, torch.complex64: 1e-4}  # of the largest value; else 5e-2
_DISCRETE = 0.01  # the share of integer and boolean values that rounding may have turned


def same_results(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two tuples of outputs agree within rounding; NaN and infinities must stand in the same places.

    Example:
        >>> same_results([torch.tensor([1.0])], [torch.tensor([1.0 + 1e-6])])
        True
        >>> same_results([torch.tensor([1.0])], [torch.tensor([1.1])])
        False
    """
    if len(first) != len(second):
        return False
    for one, other in zip(first, second, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if not (one.is_floating_point() or one.is_complex()):
            if one.numel() and float((one != other).double().mean()) > _DISCRETE:
                return False
            continue
        gap, scale = difference(one, other)
        if gap > _MARGIN.get(one.dtype, 5e-2) * max(scale, 1e-6):
            return False
    return True


def redrawn(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Other values of the same kind, as far as one can know: drawn from those at hand, noise where all are alike.

    Example:
        >>> (again,) = redrawn([torch.arange(6.0).reshape(2, 3)])
        >>> again.shape, set(again.flatten().tolist()) < set(range(6))
        (torch.Size([2, 3]), True)
    """
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for tensor in inputs:
        values = tensor.reshape(-1)
        if tensor.is_floating_point() and tensor.numel() and bool((values == values[0]).all()):
            values = values + torch.randn(values.shape, generator=generator).to(values)
        count = max(tensor.numel(), 1)
        places = torch.randint(count, (tensor.numel(),), generator=generator).to(tensor.device)
        drawn.append(values[places].reshape(tensor.shape).contiguous())
    return tuple(drawn)
