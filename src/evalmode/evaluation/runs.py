"""A set of positions as runs: small however many samples it holds, as long as they came mostly in order."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

__all__ = ["Runs"]


class Runs:
    """Positions as disjoint runs `[start, end)` that do not touch.

    Example:
        >>> runs = Runs()
        >>> runs.add(np.array([0, 1, 2, 7]))
        >>> runs.has(np.array([2, 3, 7])).tolist()
        [True, False, True]
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._starts)

    def add(self, positions: NDArray[np.int64]) -> None:
        """Put `positions`, of shape `(N,)`, in; one that is there already changes nothing."""
        ordered = np.unique(positions)
        breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
        for run in np.split(ordered, breaks):
            if run.size:
                self._put(int(run[0]), int(run[-1]) + 1)

    def has(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each of `positions`, of shape `(N,)`, whether it is in."""
        if not self._starts:
            return np.zeros(len(positions), np.bool_)
        run = np.searchsorted(self._starts, positions, side="right") - 1
        inside: NDArray[np.bool_] = (run >= 0) & (positions < np.asarray(self._ends)[run])
        return inside

    def _put(self, start: int, end: int) -> None:
        first = bisect_right(self._starts, start)
        if first and self._ends[first - 1] >= start:
            first -= 1
        last = bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
