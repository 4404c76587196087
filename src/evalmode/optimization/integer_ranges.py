"""Which whole numbers a model takes at each of its inputs: tokens of its vocabulary, and no others.

A model refuses a token beyond its table; a back end that looks it up all the same answers with other memory. So the
ends are looked for by running the model, probes reach to both of them, and a plan refuses what lies beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from evalmode.backends.program import Program
from evalmode.optimization.probes import leaves_of
from evalmode.predictor.plan import IntegerRange

__all__ = ["accepted_ranges"]

_FARTHEST = 2**24  # up to here fp32, which models turn whole numbers into, holds each of them
_BEYOND = 4  # times the largest given one, where that is larger


def accepted_ranges(
    plain: Callable[..., object], program: Program, batch: int, sizes: Sequence[int] = ()
) -> tuple[IntegerRange | None, ...]:
    """The smallest and the largest whole number that `plain` takes at each input, as far as 2^24 or 4 times the given.

    None for floating and Boolean inputs, and for all where nothing is to be learnt: values might decide about memory
    (no graph, or a graph with sizes that depend on them), or a refusal might break the device. `plain` is called with
    `batch` samples; `sizes` are lengths of tables, at which ends are likely. A mask holds 0 and 1.

    Example:
        >>> from torch import nn
        >>> from evalmode.optimization.exporting import program_of
        >>> exported = program_of(nn.Embedding(50, 4), torch.tensor([[3, 7]]))
        >>> accepted_ranges(exported.flat, exported.program, 1)
        (IntegerRange(least=0, most=49),)
    """
    nothing = (None,) * len(program.inputs)
    if any(x.device.type != "cpu" for x in program.inputs) or _measures_values(program.exported):
        return nothing
    inputs = program.inputs_at(batch)
    if not _takes(plain, inputs):
        return nothing
    return tuple(
        None
        if not _counts(leaf.given)
        else IntegerRange(0, 1)
        if leaf.role == "mask"
        else _range_at(plain, inputs, place, leaf.given, sizes)
        for place, leaf in enumerate(leaves_of(program.inputs, program.input_axes, program.input_names))
    )


def _counts(tensor: Tensor) -> bool:
    whole = not (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype is not torch.bool
    return whole and tensor.numel() > 0


def _measures_values(graph: ExportedProgram | None) -> bool:
    """Whether a size may be taken from values, as one in the graph is: such a model may allocate by them."""
    return graph is None or any(_is_unbacked(node.meta.get("val")) for node in graph.graph.nodes)


def _is_unbacked(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else (value,)
    return any(
        isinstance(each, Tensor | torch.SymInt | torch.SymFloat | torch.SymBool) and bool(free_unbacked_symbols(each))
        for each in values
    )


def _takes(plain: Callable[..., object], inputs: Sequence[Tensor]) -> bool:
    try:
        with torch.no_grad():
            plain(*inputs)
    except Exception:  # noqa: BLE001 - whatever the model raises is its refusal
        return False
    return True


def _range_at(
    plain: Callable[..., object], inputs: Sequence[Tensor], place: int, given: Tensor, sizes: Sequence[int]
) -> IntegerRange:
    least, most = int(given.min()), int(given.max())
    kind = torch.iinfo(given.dtype)
    farthest = max(_FARTHEST, _BEYOND * abs(least), _BEYOND * abs(most))

    def takes(value: int) -> bool:
        changed = torch.full_like(inputs[place], value)
        return _takes(plain, [*inputs[:place], changed, *inputs[place + 1 :]])

    ends = [size - 1 for size in sizes]
    return IntegerRange(
        least=-_end(lambda value: takes(-value), -least, min(farthest, -kind.min), [0]),
        most=_end(takes, most, min(farthest, kind.max), ends),
    )


def _end(takes: Callable[[int], bool], known: int, farthest: int, likely: Sequence[int]) -> int:
    """The largest number that is taken, from one that is `known` to be; the `likely` ones are tried first."""
    if farthest <= known or takes(farthest):
        return max(known, farthest)
    refused = farthest
    ladder = sorted({value for value in likely if known < value < refused})
    while ladder:
        middle = len(ladder) // 2
        if takes(ladder[middle]):
            known, ladder = ladder[middle], ladder[middle + 1 :]
        else:
            refused, ladder = ladder[middle], ladder[:middle]
    step = known + 1  # a likely end, if there was one, is the end
    while refused - known > 1:
        if takes(step):
            known = step
        else:
            refused = step
        step = (known + refused) // 2
    return known
