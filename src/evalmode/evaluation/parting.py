"""A group taken apart: the model's inputs, the target, and what names and slices its samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.errors import EvalmodeError, TaskError
from evalmode.evaluation.groups import Group
from evalmode.evaluation.labels import Labels, lone_input, without_columns
from evalmode.evaluation.reading import rows_again
from evalmode.evaluation.split import Split, checked_split, default_split
from evalmode.observe.columns import Columns

__all__ = ["Parted", "Parting", "rows_of_group"]


@dataclass(frozen=True, slots=True)
class Parted:
    """The parts of a group; `ids` and `columns` have one entry for each of its samples."""

    inputs: Any
    target: Any
    ids: NDArray[Any]
    columns: dict[str, NDArray[Any]]


class Parting:
    """Takes groups apart by `split`, or by the rule; `named` inputs are handed over under their names."""

    def __init__(
        self, labels: Labels, split: Split | None, wanted: frozenset[str], say: Callable[..., None], *, named: bool
    ) -> None:
        self.labels, self.split, self.wanted, self.say, self.named = labels, split, wanted, say, named

    def __call__(self, group: Group) -> Parted:
        """The parts of a group.

        Raises:
            TaskError: it has none, as a batch of another structure.
        """
        positions = np.asarray(group.positions, np.int64)
        ids = self.labels.ids(group.batch, positions, group.size)
        columns = self.labels.of(group.batch, positions, group.size)
        return Parted(*self.pair(group.batch), ids, columns)

    def pair(self, batch: Any) -> tuple[Any, Any]:
        """The inputs and the target of a batch."""
        if self.split is not None:
            return checked_split(self.split, batch)
        inputs, target, said = default_split(without_columns(batch, self.labels.named, self.wanted))
        inputs, alone = (inputs, "") if self.named else lone_input(inputs, self.wanted)
        self.say(said, alone)
        return inputs, target

    def names(self, group: Group) -> list[str]:
        """The ids of a group that cannot be taken apart."""
        with contextlib.suppress(EvalmodeError):
            positions = np.asarray(group.positions, np.int64)
            return [str(name) for name in self.labels.ids(group.batch, positions, group.size)]
        return [self.labels.name(position) for position in group.positions]

    def failing(self, group: Group, *, quick: bool) -> dict[int, TaskError]:
        """The rows that cannot be taken apart even beside copies of themselves, and why.

        A `quick` look takes all rows to be like the first and the last, where both fail.
        """
        found: dict[int, TaskError] = {}
        last = len(group) - 1
        for row in dict.fromkeys((0, last, *range(len(group)))):
            try:
                self(rows_of_group(group, [row]))
            except TaskError as error:
                found[row] = error
            if quick and row == last and len(found) == len({0, last}):
                return dict.fromkeys(range(len(group)), found[0])
        return dict(sorted(found.items()))


def rows_of_group(group: Group, rows: Sequence[int]) -> Group:
    """A group of the same size that holds the samples of some rows alone, again and again."""
    held = [rows[place % len(rows)] for place in range(group.size)]
    batch = group.batch.again(held) if isinstance(group.batch, Columns) else rows_again(group.batch, rows, group.size)
    digests = tuple(group.digests[row] for row in rows) if group.digests else ()
    return Group(batch, tuple(group.positions[row] for row in rows), group.size, digests)
