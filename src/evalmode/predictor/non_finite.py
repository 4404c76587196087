"""Samples with NaN or infinity among their inputs, for back ends that do not answer them as the model does.

Some kernels compute `max(x, 0)` of NaN as 0: a broken input then gets an answer that looks sound, where PyTorch gives
NaN. Others give NaN where a gate of the model closes at infinity, or another class where it takes the maximum of NaN.
Where the model answers every such sample with NaN, a plan on such a back end says NaN itself; elsewhere the model runs
that sample, alone. Minus infinity counts only where it is no mask's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from evalmode.backends.backend import Executor
from evalmode.predictor.canonical import canonical

__all__ = ["answered", "answered_by", "answered_with_nan", "broken_samples"]


def broken_samples(inputs: Sequence[Tensor], axes: Sequence[int | None], minus: Collection[int] = ()) -> Tensor | None:
    """Which samples hold NaN or plus infinity, or at the inputs `minus` minus infinity; None where none does.

    Shapes: `(N,)`, booleans. An input that belongs to no sample counts for all of them: alone it gives `(1,)`.

    Example:
        >>> broken_samples([torch.tensor([[1.0], [torch.nan]])], [0])
        tensor([False,  True])
        >>> broken_samples([torch.tensor([[1.0], [-torch.inf]])], [0], minus=[0])
        tensor([False,  True])
        >>> broken_samples([torch.ones(2, 1)], [0])
    """
    found: Tensor | None = None
    for place, (tensor, axis) in enumerate(zip(inputs, axes, strict=True)):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        below = place not in minus
        if bool(tensor.amax() < torch.inf) and (below or bool(tensor.amin() > -torch.inf)):
            continue  # NaN passes on through the maximum, and compares as false
        bad = tensor.isnan() | (tensor == torch.inf) if below else ~tensor.isfinite()
        rows = bad.any().reshape(1) if axis is None else bad.movedim(axis, 0).reshape(bad.shape[axis], -1).any(1)
        found = rows if found is None else found | rows
    return found


def answered(
    plain: Executor | None,
    inputs: Sequence[Tensor],
    input_axes: Sequence[int | None],
    outputs: Sequence[Tensor],
    output_axes: Sequence[int | None],
    broken: Tensor | None,
) -> list[Tensor]:
    """The outputs, with those of `plain` for the broken samples, or with NaN where it is None."""
    if broken is None:
        return list(outputs)
    if plain is None:
        return answered_with_nan(outputs, output_axes, broken)
    return answered_by(plain, inputs, input_axes, outputs, output_axes, broken)


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


def answered_by(
    plain: Executor,
    inputs: Sequence[Tensor],
    input_axes: Sequence[int | None],
    outputs: Sequence[Tensor],
    output_axes: Sequence[int | None],
    broken: Tensor,
) -> list[Tensor]:
    """The outputs with those of `plain` for the broken samples: each fills an execution alone."""
    samples = next((x.shape[axis] for x, axis in zip(inputs, input_axes, strict=True) if axis is not None), None)
    if samples is None:
        (whole,) = plain.run([tuple(canonical(tensor) for tensor in inputs)])
        return list(whole)
    answered = list(outputs)
    for row in broken.expand(samples).nonzero()[:, 0].tolist():
        rows = torch.full((plain.configuration.batch,), row, device=broken.device)
        chunk = tuple(
            canonical(tensor if axis is None else tensor.index_select(axis, rows))
            for tensor, axis in zip(inputs, input_axes, strict=True)
        )
        (alone,) = plain.run([chunk])
        for number, axis in enumerate(output_axes):
            if axis is not None:
                answered[number] = answered[number].index_copy(axis, rows[:1], alone[number].narrow(axis, 0, 1))
    return answered
