"""Many samples kept beside each other, of which executions of any size are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from evalmode.backends.backend import Chunk
from evalmode.errors import OptimizationError
from evalmode.observe.tree import describe

__all__ = ["Run", "Samples", "executions", "ran", "require_rows", "rows_of"]

IN_FLIGHT = 4  # executions handed over at once: enough to fill the streams of a plan, few enough to bound memory

Run = Callable[[Sequence[Chunk]], list[Chunk]]
"""What is verified: `Executor.run`, or a whole plan; the outputs of each chunk of inputs, in order."""


@dataclasses.dataclass(frozen=True, slots=True)
class Samples:
    """Samples stacked along the axis of each input that counts them; an input without one belongs to all.

    `kinds` says of each sample what it is. Without any such axis the inputs as a whole are the one sample.
    """

    inputs: Chunk
    axes: tuple[int | None, ...]
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.kinds)

    def at(self, positions: Sequence[int]) -> Chunk:
        """The inputs of one execution: the samples at `positions`, contiguous and fresh.

        Example:
            >>> samples = Samples((torch.arange(3), torch.ones(2)), (0, None), ("given",) * 3)
            >>> samples.at([2, 0])[0].tolist()
            [2, 0]
        """
        return tuple(
            tensor.clone(memory_format=torch.contiguous_format)
            if axis is None
            else tensor.index_select(axis, torch.tensor(positions, device=tensor.device)).contiguous()
            for tensor, axis in zip(self.inputs, self.axes, strict=True)
        )

    def chosen(self, positions: Sequence[int]) -> Samples:
        """These samples alone."""
        return Samples(self.at(positions), self.axes, tuple(self.kinds[position] for position in positions))

    def finite(self) -> list[bool]:
        """Of each sample, whether its inputs hold neither NaN nor infinity.

        Minus infinity is a value like others in an input of which a given sample holds it: masks are made of it.
        """
        sound = [True] * len(self)
        for tensor, axis in zip(self.inputs, self.axes, strict=True):
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            bad = ~tensor.isfinite()
            if self._masks(tensor, axis):
                bad &= tensor != -torch.inf
            if axis is None:
                found = [bool(bad.any())] * len(self)
            else:
                found = bad.movedim(axis, 0).reshape(len(self), bad.numel() // len(self)).any(1).tolist()
            sound = [known and not row for known, row in zip(sound, found, strict=True)]
        return sound

    def _masks(self, tensor: Tensor, axis: int | None) -> bool:
        """Whether given samples hold minus infinity in this input."""
        if tensor.is_complex():
            return False
        given = [place for place, kind in enumerate(self.kinds) if kind == "given"]
        own = tensor if axis is None else tensor.index_select(axis, torch.tensor(given, device=tensor.device).long())
        return bool((own == -torch.inf).any())


def require_rows(output: Tensor, axis: int | None, size: int) -> None:
    """Nothing where an output of `size` samples has a row for each of them.

    Raises:
        OptimizationError: it has another number.
    """
    if axis is not None and (output.dim() <= axis or output.shape[axis] != size):
        raise OptimizationError(
            f"{size} samples gave an output {describe(output)}: its length depends on their values",
            expected="outputs with one entry for each sample, whatever the samples hold",
            fix="mark what is dropped (NaN, or a mask) instead of leaving it out",
        )


def executions(order: Sequence[int], size: int) -> Iterator[list[int]]:
    """`order` cut into executions of `size`; the last one is filled up with samples of its own.

    Example:
        >>> list(executions([4, 5, 6], 2))
        [[4, 5], [6, 6]]
    """
    for start in range(0, len(order), size):
        held = list(order[start : start + size])
        yield [held[position % len(held)] for position in range(size)]


def rows_of(output: Tensor, axis: int | None) -> Tensor:
    """An output with a flat row for each sample, in the host's memory; one row where it belongs to none.

    Shapes: any; gives `(samples, values)`, with two values for a complex one.
    """
    values = output.detach().to_dense() if output.layout is not torch.strided else output.detach()
    values = values.cpu()
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    if axis is None:
        return values.reshape(1, -1)
    lead = values.movedim(axis, 0)
    return lead.reshape(len(lead), -1) if lead.numel() else lead.new_empty(len(lead), 0)


def ran(run: Run, samples: Samples, order: Sequence[int], size: int) -> Iterator[tuple[list[int], Chunk]]:
    """The samples of each execution of `size`, and its outputs; several executions are handed over together."""
    cut = list(executions(order, size))
    for start in range(0, len(cut), IN_FLIGHT):
        group = cut[start : start + IN_FLIGHT]
        outputs = run([samples.at(positions) for positions in group])
        yield from zip(group, outputs, strict=True)
