"""The samples of chunks in as few bytes as their values need, and in the end in the order of the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.errors import UsageError
from evalmode.evaluation.chunk import Chunk, under
from evalmode.evaluation.samples import Samples

__all__ = ["Kept", "Part", "joined"]

Values = NDArray[Any]
_OPTIONAL = ("target", "prediction", "scores", "confidence")


@dataclass(frozen=True, slots=True)
class Part:
    """The samples of a chunk as they are held: by name, each array beside the dtype that it had.

    Ids that are the samples' places are not held: None stands for them.
    """

    positions: Values
    arrays: dict[str, tuple[Values | None, np.dtype[Any]]] = field(repr=False)

    @classmethod
    def of(cls, chunk: Chunk) -> Part:
        """The part that `chunk` makes."""
        arrays: dict[str, tuple[Values | None, np.dtype[Any]]] = {}
        for name, values in chunk.arrays().items():
            if name == "digests":  # they stay in the journal
                continue
            place = name == "ids" and values.dtype == np.int64 and np.array_equal(values, chunk.positions)
            arrays[name] = (None if place else _narrow(values), values.dtype)
        return cls(_narrow(chunk.positions), arrays)

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics that it has."""
        return frozenset(name for name in self.arrays if name.startswith("rows/"))


class Kept:
    """Takes chunks in any order, and gives their samples in the order of the data.

    Example:
        >>> kept = Kept()
        >>> kept.add(Part.of(Chunk(np.array([1, 0]), np.array(["b", "a"]))))
        >>> kept.samples().ids.tolist()
        ['a', 'b']
    """

    def __init__(self) -> None:
        self._parts: list[Part] = []

    def __len__(self) -> int:
        return sum(len(part.positions) for part in self._parts)

    def add(self, part: Part) -> None:
        """Take the samples of a part in; the last one again changes nothing.

        Raises:
            UsageError: it holds other metrics than those before.
        """
        if not len(part.positions) or (self._parts and self._parts[-1] is part):
            return
        if self._parts and (differing := sorted(part.metrics ^ self._parts[0].metrics)):
            names = ", ".join(name.partition("/")[2] for name in differing)
            raise UsageError(f"not all chunks have rows of {names}", expected="the same rows in every chunk")
        self._parts.append(part)

    def positions(self) -> NDArray[np.int64]:
        """The places of the samples in the data, in the order in which they came."""
        if not self._parts:
            return np.zeros(0, np.int64)
        return np.concatenate([part.positions for part in self._parts], dtype=np.int64)

    def gapless(self) -> bool:
        """Whether the samples are the first ones of the data, all of them."""
        return len(self) == max((int(part.positions.max()) + 1 for part in self._parts), default=0)

    def samples(self) -> Samples:
        """All samples in the order of the data: the same bits however they were cut and ordered. The memory moves over:
        nothing is kept here afterwards.

        `target`, `prediction`, `scores` and `confidence` are None where a chunk has none, or where their rows differ in
        shape or kind; a column that is not in every chunk is left out. Numbers of differing width take the wider; ids
        of which some are text are all text.

        Raises:
            UsageError: a sample came twice, or the values of a metric or column differ in kind or shape.
        """
        positions = self.positions()
        parts, self._parts = self._parts, []
        if not parts:
            return Samples(positions)
        order = None
        if (positions[1:] <= positions[:-1]).any():
            order = np.argsort(positions, kind="stable")
            ordered = positions[order]
            if (twice := ordered[1:] == ordered[:-1]).any():
                place = int(ordered[1:][twice][0])
                raise UsageError(f"the sample at position {place} is in two chunks", expected="every sample once")
        ids = _ids(parts, positions)
        shared = [name for name in parts[0].arrays if "/" in name and all(name in part.arrays for part in parts)]
        named = {name: _required(parts, name, order) for name in shared}
        target, prediction, scores, confidence = (_whole(parts, name, order) for name in _OPTIONAL)
        return Samples(
            ids if order is None else ids[order],
            under("rows/", named),
            target,
            prediction,
            scores,
            under("columns/", named),
            _settled(confidence),
        )


def joined(chunks: Iterable[Chunk]) -> Samples:
    """All samples of the chunks in the order of the data, as `Kept` gives them.

    Example:
        >>> first = Chunk(np.array([2]), np.array([12]))
        >>> second = Chunk(np.array([1, 0]), np.array([11, 10]))
        >>> joined([first, second]).ids.tolist()
        [10, 11, 12]
    """
    kept = Kept()
    for chunk in chunks:
        kept.add(Part.of(chunk))
    return kept.samples()


def _ids(parts: Sequence[Part], positions: NDArray[np.int64]) -> Values:
    held = [part.arrays["ids"] for part in parts]
    if all(values is None for values, _ in held):
        return positions
    found, start = [], 0
    for part, (values, _) in zip(parts, held, strict=True):
        found.append(positions[start : start + len(part.positions)] if values is None else values)
        start += len(part.positions)
    if any(values.dtype.kind == "U" for values in found):
        texts = [values if values.dtype.kind == "U" else values.astype(np.str_) for values in found]
        return _stacked(texts, {texts[0].dtype})
    return _stacked(found, {dtype for _, dtype in held})


def _whole(parts: Sequence[Part], name: str, order: NDArray[np.intp] | None) -> Values | None:
    """The column of all parts, which have it no longer; None where they differ in kind or shape, or one has none."""
    held = [part.arrays.pop(name, None) for part in parts]
    there = [pair for pair in held if pair is not None]
    if len(there) < len(held):
        return None
    dtypes = {dtype for _, dtype in there}
    arrays = [values for values, _ in there if values is not None]
    kinds = {"number" if dtype.kind in "biufc" else dtype.kind for dtype in dtypes}
    if len(kinds) > 1 or len({values.shape[1:] for values in arrays}) > 1:
        return None
    del held, there
    whole = _stacked(arrays, dtypes)
    return whole if order is None else whole[order]


def _required(parts: Sequence[Part], name: str, order: NDArray[np.intp] | None) -> Values:
    kinds = sorted({_described(*part.arrays[name]) for part in parts})
    values = _whole(parts, name, order)
    if values is None:
        what, _, key = name.partition("/")
        raise UsageError(
            f"the {what} of {key!r} differ between chunks: {', '.join(kinds)}", expected="one kind and one shape"
        )
    return values


def _described(values: Values | None, dtype: np.dtype[Any]) -> str:
    shape = () if values is None else values.shape[1:]
    return f"{dtype} (N{''.join(f', {size}' for size in shape)})"


def _narrow(values: Values) -> Values:
    """Whole numbers in the narrowest type that has them; anything else as it is."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize == 1 or not values.size:
        return values
    low, high = values.min(), values.max()
    smaller = np.result_type(np.min_scalar_type(low), np.min_scalar_type(high))
    return values.astype(smaller) if smaller.kind in "iu" and smaller.itemsize < values.dtype.itemsize else values


def _settled(confidence: Values | None) -> Values | None:
    """Scores that look like probabilities are such only if those of every sample do: no part of the data decides."""
    if confidence is None:
        return None
    logits = np.isnan(confidence[:, 0]) & ~np.isnan(confidence[:, 1])
    return confidence[:, int(logits.any())].copy()


def _stacked(values: Sequence[Values], dtypes: set[np.dtype[Any]]) -> Values:
    """The parts as one array of the type that they came in; text as wide as the longest, however wide they were."""
    if dtypes and all(dtype.kind in "biufc" for dtype in dtypes):
        return np.concatenate(values, dtype=np.result_type(*dtypes), casting="unsafe")
    stacked = np.concatenate(values)
    if stacked.dtype.kind == "U":
        longest = int(np.strings.str_len(stacked).max(initial=1))
        return stacked.astype(f"<U{max(longest, 1)}")
    return stacked
