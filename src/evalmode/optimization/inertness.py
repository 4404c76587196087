"""Whether padding under a mask leaves the real positions alone, so that sequences may be filled up to one length."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from evalmode.backends.backend import Chunk
from evalmode.errors import UsageError
from evalmode.observe.batching import difference
from evalmode.observe.wide import WideUnsupportedError
from evalmode.optimization.reference import Plain, evaluate_wide

__all__ = ["Inertness", "PaddedInput", "padding_is_inert"]

ROUNDING = 1e-9
MOST_SAMPLES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class PaddedInput:
    """An input that is filled up: which one, along which axis, and with what."""

    name: str
    place: int
    axis: int
    value: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inertness:
    """What was found: `inert`, or the `reason` why not.

    `inputs` are filled up to a common length, `before` or behind what is real; `outputs` are the places and axes of the
    outputs that are cut back. `gap` is the largest difference in fp64 as a share of the output's scale, over the
    `lengths` that were tried.
    """

    inert: bool
    reason: str
    mask: str
    inputs: tuple[PaddedInput, ...] = ()
    outputs: tuple[tuple[int, int], ...] = ()
    before: bool = False
    lengths: tuple[int, ...] = ()
    gap: float = 0.0


def padding_is_inert(
    plain: Plain,
    inputs: Chunk,
    names: Sequence[str],
    axes: Sequence[int | None],
    *,
    mask: str,
    axis: int = 1,
    model: nn.Module | None = None,
) -> Inertness:
    """Whether a shorter sequence gives the same answers, in fp64, when it is filled up to full length under `mask`.

    What is filled up is every input that has the mask's length along `axis`, those of a decoder apart from the others.
    Each is filled with what the batch itself pads with, else with zeros.

    Raises:
        UsageError: there is no such mask, or it is not one of zeros and ones of shape (samples, length).

    Example:
        >>> def mean(x, mask):
        ...     return ((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),)
        >>> x, mask = torch.randn(2, 6, 3), torch.ones(2, 6)
        >>> padding_is_inert(mean, (x, mask), ("x", "mask"), (0, 0), mask="mask").inert
        True
        >>> padding_is_inert(lambda x, mask: (x.mean(1),), (x, mask), ("x", "mask"), (0, 0), mask="mask").inert
        False
    """
    place = _mask_place(inputs, names, mask, axis)
    held = tuple(
        tensor if samples is None else tensor.narrow(samples, 0, min(MOST_SAMPLES, tensor.shape[samples]))
        for tensor, samples in zip(inputs, axes, strict=True)
    )
    real, before = _pattern(inputs[place], axis, names[place].lower())
    padded = _padded_inputs(inputs, names, place, axis, real)
    total = inputs[place].shape[axis]
    lengths = tuple(sorted({length for length in (1, total // 2, total - 1) if 1 <= length < total}))
    if len(padded) < 2 or not lengths:
        return Inertness(inert=False, reason=f"nothing of length {total} belongs to {mask}", mask=mask)
    found = Inertness(inert=True, reason="", mask=mask, inputs=padded, before=before, lengths=lengths)
    for length in lengths:
        short = _cut(held, padded, place, length, real, before)
        filled = _filled(short, padded, total, before)
        try:
            pair = evaluate_wide(plain, short, model), evaluate_wide(plain, filled, model)
        except WideUnsupportedError as error:
            return dataclasses.replace(found, inert=False, reason=f"undecided: {error}")
        found = _compared(found, *pair, length, total)
        if not found.inert:
            return found
    return found


def _mask_place(inputs: Chunk, names: Sequence[str], mask: str, axis: int) -> int:
    wanted = mask.lower()
    place = next((number for number, name in enumerate(names) if name == mask), None)
    if place is None:
        place = next((number for number, name in enumerate(names) if wanted in name.lower()), None)
    if place is None:
        raise UsageError(f"no input is called {mask!r}", expected=f"one of {', '.join(names)}")
    tensor = inputs[place]
    if tensor.dim() != 2 or axis not in {1, -1} or not bool(((tensor == 0) | (tensor == 1)).all()):
        raise UsageError(
            f"the mask {names[place]} has shape {list(tensor.shape)} and is filled along axis {axis}",
            expected="zeros and ones of shape (samples, length), filled along axis 1",
        )
    return place


def _pattern(mask: Tensor, axis: int, name: str) -> tuple[int, bool]:
    """The mask's value for what is real, and whether padding comes before it.

    Every sample begins with what is real, or ends with it. Where that does not tell, an attention mask says 1 for what
    is real, a padding mask 0, and of any other the more common value is real.
    """
    rows = mask.movedim(axis, 1) != 0
    first, last = (bool((column == column[0]).all()) for column in (rows[:, 0], rows[:, -1]))
    if first != last:
        return int(rows[0, 0] if first else rows[0, -1]), last
    real = int(rows.sum() * 2 >= rows.numel())
    if rows.any() and not rows.all():
        real = 1 if "attention" in name else 0 if "padding" in name else real
    return real, bool(((rows[:, 0] != real) & (rows[:, -1] == real)).any())


def _padded_inputs(inputs: Chunk, names: Sequence[str], place: int, axis: int, real: int) -> tuple[PaddedInput, ...]:
    mask = inputs[place]
    side = "decoder" in names[place].lower()
    found = []
    for number, (tensor, name) in enumerate(zip(inputs, names, strict=True)):
        if tensor.dim() < 2 or tensor.shape[:2] != mask.shape or ("decoder" in name.lower()) != side:
            continue
        value = float(1 - real) if number == place else _pads_with(tensor, mask != real)
        found.append(PaddedInput(name, number, 1 if axis == -1 else axis, value))
    return tuple(found)


def _pads_with(tensor: Tensor, padding: Tensor) -> float:
    """What the batch itself holds where it is padded, if that is one value; else 0."""
    values = tensor[padding]
    if values.numel() and not values.is_complex() and bool((values == values.reshape(-1)[0]).all()):
        return float(values.reshape(-1)[0])
    return 0.0


def _cut(inputs: Chunk, padded: Sequence[PaddedInput], place: int, length: int, real: int, before: bool) -> Chunk:
    """The inputs of so many positions: all of them real in the first sample, one less in each that follows."""
    found = list(inputs)
    for item in padded:
        tensor = inputs[item.place]
        if item.place == place:
            mask = torch.full_like(tensor[:, :length], real)
            for sample in range(len(mask)):
                kept = max(1, length - sample)
                mask[sample, : length - kept] = 1 - real if before else real
                mask[sample, kept:] = real if before else 1 - real
            found[item.place] = mask
        else:
            start = tensor.shape[item.axis] - length if before else 0
            found[item.place] = tensor.narrow(item.axis, start, length).contiguous()
    return tuple(found)


def _filled(short: Chunk, padded: Sequence[PaddedInput], total: int, before: bool) -> Chunk:
    found = list(short)
    for item in padded:
        tensor = short[item.place]
        shape = list(tensor.shape)
        shape[item.axis] = total - shape[item.axis]
        filling = torch.full(shape, item.value, dtype=torch.float64).to(tensor.device, tensor.dtype)
        found[item.place] = torch.cat([filling, tensor] if before else [tensor, filling], item.axis)
    return tuple(found)


def _compared(found: Inertness, short: Chunk, filled: Chunk, length: int, total: int) -> Inertness:
    """The real positions of both, output by output."""
    cut: list[tuple[int, int]] = []
    largest = found.gap
    for place, (one, other) in enumerate(zip(short, filled, strict=True)):
        if one.dim() != other.dim():
            return dataclasses.replace(found, inert=False, reason=f"output {place} has other axes when padded")
        for axis, (less, more) in enumerate(zip(one.shape, other.shape, strict=True)):
            if less == more:
                continue
            if (less, more) != (length, total):
                reason = (
                    f"output {place} has {more} values along axis {axis} for {total} positions, {less} for {length}"
                )
                return dataclasses.replace(found, inert=False, reason=reason)
            other = other.narrow(axis, total - length if found.before else 0, length)
            cut.append((place, axis))
        gap, scale = difference(one, other)
        largest = max(largest, gap / max(scale, 1e-300) if gap else 0.0)
        whole = not one.is_floating_point() and not one.is_complex()
        if gap > (0.0 if whole else ROUNDING * scale):
            reason = f"output {place} moves by {gap:.2g} when {length} positions are filled up to {total}"
            return dataclasses.replace(found, inert=False, reason=reason, gap=largest)
    return dataclasses.replace(found, outputs=tuple(dict.fromkeys((*found.outputs, *cut))), gap=largest)
