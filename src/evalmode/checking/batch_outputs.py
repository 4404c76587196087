"""Compare the same samples in the outputs of two batches: rows of tensors, or entries of a list."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from evalmode.checking.subject import Outputs
from evalmode.observe.batching import Layout, difference, layout_between, readings, rows_agree
from evalmode.observe.tree import same_bits

__all__ = ["Difference", "Reader", "Seats"]

_INDEX = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Seats:
    """Outputs of a batch of `size`, and the positions in it of the samples to compare."""

    outputs: Outputs
    size: int
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """How the same samples differ in two outputs: the output that differs most, and by how much.

    `lost` says that an output or its batch axis is missing in the second, whose shape is `shape`. `answers` is how many
    samples were compared in outputs that hold one score a class, `changed` the positions in the first of those whose
    decision changes.
    """

    same: bool
    leaf: str = ""
    gap: float = 0.0
    scale: float = 1.0
    lost: bool = False
    shape: tuple[int, ...] = ()
    changed: frozenset[int] = frozenset()
    answers: int = 0


class Reader:
    """Knows where the samples lie in the outputs, from two batches of different sizes.

    A list whose length follows the batch holds one entry a sample (the boxes of a detector), of any length.
    """

    def __init__(self, first: Outputs, size: int, second: Outputs | None, other_size: int | None) -> None:
        self.layouts: dict[str, Layout] = {}
        self.lists = _lists(first, size, second, other_size)
        for path, leaf in first.items():
            if self._list_of(path) is not None:
                continue
            layout = None
            if second is None or other_size is None:
                axes = [axis for axis, length in enumerate(leaf.shape) if length == size]
                layout = Layout(((axes[0], 1),)) if axes else None
            elif path in second:
                layout = layout_between(leaf.shape, size, second[path].shape, other_size)
            if layout is not None:
                self.layouts[path] = layout
        self.skipped = tuple(path for path in first if path not in self.layouts and self._list_of(path) is None)

    def __bool__(self) -> bool:
        return bool(self.layouts or self.lists)

    def compare(self, first: Seats, second: Seats) -> Difference:
        """The samples of `first` against those of `second`, bit by bit, position by position."""
        worst = Difference(same=True)
        changed: frozenset[int] = frozenset()
        answers = 0
        for path, layout in self.layouts.items():
            one, other = first.outputs[path], second.outputs.get(path)
            if other is None or not _fits(one, first.size, other, second.size, layout):
                shape = tuple(other.shape) if other is not None else ()
                return Difference(False, path, float("inf"), lost=True, shape=shape)
            sides = (one, first.size, first.positions, other, second.size, second.positions, layout)
            decided = _is_decided(one, layout)
            answers = len(first.positions) if decided else answers
            same, gap, scale = rows_agree(*sides)
            if same:
                continue
            changed |= _changed(*sides) if decided else frozenset()
            if worst.same or gap / (scale or 1.0) > worst.gap / (worst.scale or 1.0):
                worst = Difference(False, path, gap, scale, False, tuple(other.shape))
        for head, tail in self.lists:
            found = _entries_differ(first, second, head, tail)
            if not found.same and (worst.same or found.gap / (found.scale or 1.0) > worst.gap / (worst.scale or 1.0)):
                worst = found
        return replace(worst, changed=changed, answers=answers)

    def of_samples(self, outputs: Outputs, size: int, count: int) -> Outputs | None:
        """The rows of the first `count` of `size` samples; None where an output has several rows a sample, or lists."""
        if self.lists or any(rows != 1 for layout in self.layouts.values() for _, rows in layout.axes):
            return None
        if any(path not in outputs for path in self.layouts):
            return None
        positions = tuple(range(count))
        return {path: readings(outputs[path], layout, size, positions)[0] for path, layout in self.layouts.items()}

    def _list_of(self, path: str) -> tuple[str, str] | None:
        return next((pair for pair in _splits(path) if pair in self.lists), None)


def _splits(path: str) -> list[tuple[str, str]]:
    """What comes before and after each position in a path: `("['x']", "['boxes']")` for `['x'][0]['boxes']`."""
    return [(path[: match.start()], path[match.end() :]) for match in _INDEX.finditer(path)]


def _counts(outputs: Outputs) -> dict[str, int]:
    """The length of every list in the outputs, by the path before its positions."""
    found: dict[str, int] = {}
    for path in outputs:
        for match in _INDEX.finditer(path):
            head = path[: match.start()]
            found[head] = max(found.get(head, 0), int(match.group(1)) + 1)
    return found


def _lists(first: Outputs, size: int, second: Outputs | None, other_size: int | None) -> dict[tuple[str, str], None]:
    """The lists with one entry a sample: by the paths before and after the position."""
    if second is None or other_size is None or other_size == size:
        return {}
    one, other = _counts(first), _counts(second)
    heads = {head for head, length in one.items() if length == size and other.get(head) == other_size}
    return {pair: None for path in (*first, *second) for pair in _splits(path) if pair[0] in heads}


def _entries_differ(first: Seats, second: Seats, head: str, tail: str) -> Difference:
    worst = Difference(same=True)
    shown = f"{head}[i]{tail}"
    for here, there in zip(first.positions, second.positions, strict=True):
        one, other = (
            seats.outputs.get(f"{head}[{position}]{tail}") for seats, position in ((first, here), (second, there))
        )
        if one is None and other is None:
            continue
        if one is None or other is None or one.shape != other.shape:
            return Difference(False, shown, float("inf"), shape=tuple(other.shape) if other is not None else ())
        if not same_bits(one, other):
            gap, scale = difference(one, other)
            if worst.same or gap > worst.gap:
                worst = Difference(False, shown, gap, scale, shape=tuple(other.shape))
    return worst


def _fits(first: torch.Tensor, first_size: int, second: torch.Tensor, second_size: int, layout: Layout) -> bool:
    if first.dim() != second.dim() or first.dtype != second.dtype:
        return False
    rows = dict(layout.axes)
    for axis, (one, other) in enumerate(zip(first.shape, second.shape, strict=True)):
        if axis in rows and (one != rows[axis] * first_size or other != rows[axis] * second_size):
            return False
        if axis not in rows and one != other:
            return False
    return True


def _is_decided(output: torch.Tensor, layout: Layout) -> bool:
    """Whether an output looks like one score a class."""
    return layout.axes == ((0, 1),) and output.dim() == 2 and output.shape[1] > 1 and output.is_floating_point()


def _changed(
    first: torch.Tensor,
    first_size: int,
    first_positions: tuple[int, ...],
    second: torch.Tensor,
    second_size: int,
    second_positions: tuple[int, ...],
    layout: Layout,
) -> frozenset[int]:
    """The positions of the samples, in the first output, whose decision changes."""
    one = readings(first, layout, first_size, first_positions)[0].argmax(1)
    other = readings(second, layout, second_size, second_positions)[0].argmax(1)
    return frozenset(
        position for position, moved in zip(first_positions, (one != other).tolist(), strict=True) if moved
    )
