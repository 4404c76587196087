"""Whether a plan may be given shorter inputs than it was built for, and how it fills them up.

A batch that comes with a mask (zeros and ones of shape (samples, length), with `mask` in its name) may be filled up to
the length of the plan, if fp64 shows that what is filled in takes no part. Otherwise a plan takes one length only, and
says so: never is an answer given that padding may have moved.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from evalmode.errors import UsageError
from evalmode.optimization.inertness import MOST_SAMPLES, Inertness, padding_is_inert
from evalmode.optimization.subject import Subject
from evalmode.predictor.plan import AxisPadding, PaddedAxis

__all__ = ["padded_axis"]

_MOST_MASKS = 2  # are tried: a model of two sequences has two, and a plan fills up one of them
_COST = 30  # of the test, in calls of the model in fp32: six calls in fp64


def padded_axis(subject: Subject, seconds: float = 10.0) -> tuple[PaddedAxis | None, tuple[str, ...]]:
    """The axis along which shorter inputs are filled up, None where there is none, and notes for the reader.

    Units: seconds that the test may take; where it would take longer it is left out, and the plan takes one length.
    """
    program = subject.program
    masks = [
        name
        for name, tensor, axis in zip(program.input_names, program.inputs, program.input_axes, strict=True)
        if _is_mask(name, tensor, axis)
    ]
    if not masks:
        return None, ()
    masks.sort(key=lambda name: "attention" not in name.lower())
    begin = time.perf_counter()
    subject.plain_flat(*program.inputs_at(min(MOST_SAMPLES, program.batch)))
    if (time.perf_counter() - begin) * _COST > seconds:
        return None, (f"inputs of other lengths are refused: there was no time to test padding under {masks[0]}",)
    notes = []
    for mask in masks[:_MOST_MASKS]:
        try:
            found = padding_is_inert(
                subject.plain_flat,
                program.inputs,
                program.input_names,
                program.input_axes,
                mask=mask,
                model=subject.flat,
            )
        except UsageError as error:
            notes.append(f"inputs of other lengths are refused: {error.got}")
            continue
        if found.inert:
            lengths = ", ".join(map(str, found.lengths))
            note = f"shorter inputs are filled up under {mask}: padding is inert in fp64, tried at lengths {lengths}"
            return _axis(found, program.input_names.index(mask), program.inputs), (note,)
        notes.append(f"inputs of other lengths are refused: under {mask}, {found.reason}")
    return None, tuple(notes)


def _is_mask(name: str, tensor: Tensor, axis: int | None) -> bool:
    """Whether an input is a declared mask over a sequence: zeros and ones for each position of each sample."""
    if "mask" not in name.lower() or axis != 0 or tensor.dim() != 2 or tensor.shape[1] < 2:
        return False
    return tensor.numel() > 0 and bool(((tensor == 0) | (tensor == 1)).all())


def _axis(found: Inertness, mask: int, inputs: tuple[Tensor, ...]) -> PaddedAxis:
    return PaddedAxis(
        mask=mask,
        length=inputs[mask].shape[1],
        inputs=tuple(
            AxisPadding(item.place, item.axis, _typed(item.value, inputs[item.place])) for item in found.inputs
        ),
        outputs=tuple(AxisPadding(place, axis) for place, axis in found.outputs),
        before=found.before,
    )


def _typed(value: float, tensor: Tensor) -> int | float | bool:
    if tensor.dtype == torch.bool:
        return bool(value)
    return value if tensor.is_floating_point() or tensor.is_complex() else int(value)
