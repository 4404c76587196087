"""Samples with NaN or infinity among their inputs, for back ends that do not pass NaN on.

Some kernels compute `max(x, 0)` of NaN as 0: a broken input then gets an answer that looks sound, where PyTorch gives
NaN. Where the model answers every such sample with NaN, a plan on such a back end says NaN itself. Minus infinity does
not count: masks are made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["answered_with_nan", "broken_samples"]


def broken_samples(inputs: Sequence[Tensor], axes: Sequence[int | None]) -> Tensor | None:
    """Which samples hold NaN or plus infinity; None where none does.

    Shapes: `(N,)`, booleans. An input that belongs to no sample counts for all of them.

    Example:
        >>> broken_samples([torch.tensor([[1.0], [torch.nan]])], [0])
        tensor([False,  True])
        >>> broken_samples([torch.ones(2, 1)], [0])
    """
    found: Tensor | None = None
    for tensor, axis in zip(inputs, axes, strict=True):
        if not tensor.is_floating_point() or not tensor.numel() or bool(tensor.amax() < torch.inf):
            continue  # NaN passes on through the maximum, and compares as false
        bad = tensor.isnan() | (tensor == torch.inf)
        rows = bad.any().reshape(1) if axis is None else bad.movedim(axis, 0).reshape(bad.shape[axis], -1).any(1)
        found = rows if found is None else found | rows
    return found


def answered_with_nan(outputs: Sequence[Tensor], axes: Sequence[int | None], broken: Tensor) -> list[Tensor]:
    """The outputs with NaN for the broken samples, in every floating output that has samples.

    Example:
        >>> answered_with_nan([torch.zeros(2, 1)], [0], torch.tensor([False, True]))
        [tensor([[0.],
                [nan]])]
    """
    answered = []
    for output, axis in zip(outputs, axes, strict=True):
        if axis is None or not output.is_floating_point():
            answered.append(output)
            continue
        rows = torch.arange(output.shape[axis], device=output.device)[broken.expand(output.shape[axis])]
        answered.append(output.index_fill(axis, rows, torch.nan))
    return answered
