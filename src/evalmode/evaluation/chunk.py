"""A part of an evaluation: what is kept of some samples, whatever their order, and how the parts become a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.certificate import BadSampleRecord
from evalmode.errors import UsageError
from evalmode.evaluation.samples import Samples

__all__ = ["Chunk", "joined"]

Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some samples of an evaluation, as a journal records them in one transaction.

    `positions` are the places of the samples in the data, from 0; `bad` are the samples that were left out beside them,
    which have no position here. The rest is as in `Samples`.

    Shapes: `positions` and `ids` `(N,)`; `target`, `prediction` `(N, ...)` or None; `scores` `(N, C)` or None; each of
    `rows` `(N,)` or `(N, K)`; each of `columns` `(N,)`.

    Raises:
        UsageError: an array has another length, or a position is negative, repeated or no whole number.

    Example:
        >>> chunk = Chunk(np.array([0, 1]), np.array(["a", "b"]), {"accuracy": np.array([True, False])})
        >>> chunk.samples
        2
    """

    positions: NDArray[np.int64]
    ids: Values
    rows: Mapping[str, Values] = field(default_factory=dict)
    target: Values | None = None
    prediction: Values | None = None
    scores: Values | None = None
    columns: Mapping[str, Values] = field(default_factory=dict)
    bad: tuple[BadSampleRecord, ...] = ()

    def __post_init__(self) -> None:
        positions = self.positions
        if positions.ndim != 1 or positions.dtype != np.int64:
            raise UsageError(f"positions are {_described(positions)}", expected="int64 of shape (N,)")
        if positions.size and (positions.min() < 0 or len(np.unique(positions)) != positions.size):
            raise UsageError("a position is negative or there twice", expected="the place of each sample in the data")
        for name, values in self.arrays().items():
            if values.ndim == 0 or len(values) != positions.size:
                raise UsageError(
                    f"{name} is {_described(values)} in a chunk of {positions.size} samples",
                    expected=f"shape ({positions.size}, ...)",
                )

    @property
    def samples(self) -> int:
        """How many samples it holds; those left out are not counted."""
        return len(self.positions)

    @property
    def done(self) -> int:
        """How many samples of the data it answers for: those it holds and those left out."""
        return len(self.positions) + len(self.bad)

    def arrays(self) -> dict[str, Values]:
        """Every array beside the positions, by a name that is its own: `rows/accuracy`, `columns/group`, `scores`."""
        single = {"ids": self.ids, "target": self.target, "prediction": self.prediction, "scores": self.scores}
        return {
            **{name: values for name, values in single.items() if values is not None},
            **{f"rows/{name}": values for name, values in self.rows.items()},
            **{f"columns/{name}": values for name, values in self.columns.items()},
        }


def joined(chunks: Iterable[Chunk]) -> Samples:
    """All samples of the chunks in the order of the data: the same bits however they were cut and ordered.

    `target`, `prediction` and `scores` are None where a chunk has none, or where their rows differ in shape or kind.
    Numbers of differing width take the wider; ids of which some are text are all text.

    Raises:
        UsageError: a position is in two chunks, or chunks hold other metrics or columns than the rest.

    Example:
        >>> first = Chunk(np.array([2]), np.array([12]))
        >>> second = Chunk(np.array([1, 0]), np.array([11, 10]))
        >>> joined([first, second]).ids.tolist()
        [10, 11, 12]
    """
    parts = [chunk for chunk in chunks if chunk.samples]
    if not parts:
        return Samples(np.zeros(0, np.int64))
    positions = np.concatenate([part.positions for part in parts])
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    if (twice := ordered[1:] == ordered[:-1]).any():
        raise UsageError(
            f"the sample at position {int(ordered[1:][twice][0])} is in two chunks", expected="every sample once"
        )

    def optional(values: Sequence[Values | None]) -> Values | None:
        there = [part for part in values if part is not None]
        return _stacked(there)[order] if len(there) == len(values) and _alike(there) else None

    return Samples(
        _stacked(_ids([part.ids for part in parts]))[order],
        _named("rows", [part.rows for part in parts], order),
        optional([part.target for part in parts]),
        optional([part.prediction for part in parts]),
        optional([part.scores for part in parts]),
        _named("columns", [part.columns for part in parts], order),
    )


def _named(what: str, parts: Sequence[Mapping[str, Values]], order: NDArray[np.intp]) -> dict[str, Values]:
    names = list(parts[0])
    for part in parts:
        if set(part) != set(names):
            differing = ", ".join(sorted(set(part) ^ set(names)))
            raise UsageError(f"not all chunks have {what} of {differing}", expected=f"the same {what} in every chunk")
    return {name: _same_kind(f"{what} of {name!r}", [part[name] for part in parts])[order] for name in names}


def _same_kind(what: str, values: Sequence[Values]) -> Values:
    if not _alike(values):
        kinds = sorted({f"{part.dtype} (N{''.join(f', {size}' for size in part.shape[1:])})" for part in values})
        raise UsageError(f"the {what} differ between chunks: {', '.join(kinds)}", expected="one kind and one shape")
    return _stacked(values)


def _ids(values: Sequence[Values]) -> list[Values]:
    text = any(part.dtype.kind == "U" for part in values)
    return [part.astype(np.str_) if text and part.dtype.kind != "U" else part for part in values]


def _alike(values: Sequence[Values]) -> bool:
    """The rows have one shape and are all numbers, or all of one other kind."""
    kinds = {"number" if part.dtype.kind in "biufc" else part.dtype.kind for part in values}
    return len(kinds) == 1 and len({part.shape[1:] for part in values}) == 1


def _stacked(values: Sequence[Values]) -> Values:
    stacked = np.concatenate(values)
    if stacked.dtype.kind == "U":  # as wide as the longest text, however wide the chunks were
        longest = int(np.strings.str_len(stacked).max(initial=1))
        return stacked.astype(f"<U{max(longest, 1)}")
    return stacked


def _described(values: Values) -> str:
    return f"{values.dtype} of shape {values.shape}"
