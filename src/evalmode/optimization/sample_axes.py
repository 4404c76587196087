"""Which axes of the inputs and outputs count samples: seen by running two batch sizes, never guessed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evalmode.backends.program import Program
from evalmode.observe.batching import BatchAxis
from evalmode.optimization.agreement import redrawn, same_results
from evalmode.optimization.flat import FlatModule
from evalmode.predictor.structure import Structure

__all__ = ["input_axes", "of_the_whole_batch", "output_axes", "outputs_by_size", "probe_sizes"]

_SIZES = (3, 4, 5, 7, 6, 9, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67)  # small ones cost least


def input_axes(inputs: Structure, tensors: Sequence[Tensor], found: BatchAxis | str) -> tuple[int | None, ...]:
    """The axis of each input that counts samples; None for one that belongs to no sample."""
    if isinstance(found, str) or found.listed:
        return (None,) * len(tensors)
    paths = set(found.paths)
    # The paths of a structure and of the batch's tree are spelt alike.
    return tuple(
        found.axis % tensor.dim() if path in paths and tensor.dim() else None
        for path, tensor in zip(inputs.paths, tensors, strict=True)
    )


def probe_sizes(program: Program) -> tuple[int, int]:
    """Two batch sizes that no other axis of the inputs has: what follows them, follows the batch.

    Example:
        >>> probe_sizes(Program(torch.nn.ReLU(), (torch.zeros(2, 3),), ("input",), (0,), (0,)))
        (4, 5)
    """
    taken = {
        size
        for tensor, axis in zip(program.inputs, program.input_axes, strict=True)
        for position, size in enumerate(tensor.shape)
        if position != axis
    }
    first, second = itertools.islice((size for size in _SIZES if size not in taken), 2)
    return first, second


def outputs_by_size(flat: FlatModule, program: Program, found: BatchAxis | str) -> dict[int, Any] | str:
    """The outputs at two batch sizes that no other axis of the inputs has; or why there are none."""
    if isinstance(found, str):
        return f"no batch axis: {found}"
    if found.listed:
        return "no batch axis: the batch is a list of samples"
    outputs: dict[int, Any] = {}
    with torch.no_grad():
        for size in probe_sizes(program):
            try:
                outputs[size] = flat.answer(*program.inputs_at(size))
            except Exception as error:  # noqa: BLE001 - a model may take one size alone, and say so in any way
                first = (str(error).strip().splitlines() or [""])[0]
                return f"takes only batches of {program.batch}: {type(error).__name__}: {first[:120]}"
    return outputs


def output_axes(
    outputs: Structure, sized: dict[int, Any], found: BatchAxis | str
) -> tuple[tuple[int | None, ...], tuple[str, ...]]:
    """The axis of each output that counts samples, and why others cannot be cut into samples."""
    flats = {size: outputs.flatten(tree) for size, tree in sized.items()}
    if len(sized) < 2:
        reason = "no batch axis is known" if isinstance(found, str) else "the model ran at one batch size only"
        count = len(outputs.paths)
        return (None,) * count, tuple(f"{path or 'the output'}: {reason}" for path in outputs.paths)
    (one_size, one), (other_size, other) = flats.items()
    axes: list[int | None] = []
    uncut: list[str] = []
    for path, first, second in zip(outputs.paths, one, other, strict=True):
        axis, problem = _axis_between(tuple(first.shape), one_size, tuple(second.shape), other_size)
        axes.append(axis)
        if problem:
            uncut.append(f"{path or 'the output'}: {problem}")
    return tuple(axes), tuple(uncut)


def _axis_between(
    first: tuple[int, ...], first_size: int, second: tuple[int, ...], second_size: int
) -> tuple[int | None, str]:
    if len(first) != len(second):
        return None, "its number of axes depends on the batch"
    moved = [position for position, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    if not moved:
        return None, ""
    (position, *more) = moved
    if more:
        return None, "several of its axes follow the batch"
    if (first[position], second[position]) != (first_size, second_size):
        return None, f"axis {position} has {first[position]} rows for {first_size} samples"
    return position, ""


def of_the_whole_batch(
    flat: FlatModule, program: Program, axes: Sequence[int | None], known: Sequence[str]
) -> tuple[str, ...]:
    """The outputs without a batch axis that depend on the inputs: a loss, say. A table that never changes is none.

    `known` are those that cannot be cut for another reason.
    """
    if None not in axes:
        return ()
    told = {reason.partition(": ")[0] for reason in known}
    batches = [program.inputs_at(size) for size in probe_sizes(program)]
    with torch.no_grad():
        first = flat(*batches[0])
        try:
            others = [flat(*redrawn(batch)) for batch in batches]  # one may have the same mean by chance
        except Exception:  # noqa: BLE001 - redrawn values may be no input of the model
            others = [flat(*batches[1])]
    return tuple(
        f"{path or 'the output'}: one value for the whole batch"
        for path, axis, one, *more in zip(flat.outputs.paths, axes, first, *others, strict=True)
        if axis is None
        and (path or "the output") not in told
        and not all(same_results([one], [other]) for other in more)
    )
