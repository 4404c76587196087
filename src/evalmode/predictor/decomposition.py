"""How a caller's batch is cut into executions of the sizes at hand, at the least cost."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Decomposition"]

_TABLE_LIMIT = 1 << 16


class Decomposition:
    """Cuts any number of samples into executions; the last one may be filled up.

    `costs` are the seconds of one execution of each size. The cut is the cheapest there is (for sizes of hundreds of
    samples, where the exact table would be too long: the cheapest among those that fill up with the best size first).
    The same number of samples is cut in the same way in every call.

    Example:
        >>> Decomposition((1, 8), (1.0, 2.0)).sizes_for(19)
        (8, 8, 8)
        >>> Decomposition((1, 8), (1.0, 4.0)).sizes_for(19)
        (8, 8, 1, 1, 1)
    """

    def __init__(self, sizes: Sequence[int], costs: Sequence[float]) -> None:
        self._costs = dict(zip(sizes, costs, strict=True))
        self._best = min(sizes, key=lambda size: (self._costs[size] / size, size))
        # Of `best` executions of other sizes, some add up to a multiple of `best` samples and could be replaced by
        # executions of that size at no higher cost: a cheapest cut has fewer of them than that.
        self._table_length = min(self._best * max(sizes), _TABLE_LIMIT)
        self._table: list[tuple[float, int]] = [(0.0, 0)]
        self._kept: dict[int, tuple[int, ...]] = {}

    def sizes_for(self, samples: int) -> tuple[int, ...]:
        """The execution sizes for so many samples, the largest first."""
        kept = self._kept.get(samples)
        if kept is None:
            kept = self._cut(samples)
            if len(self._kept) < 1024:
                self._kept[samples] = kept
        return kept

    def _cut(self, samples: int) -> tuple[int, ...]:
        of_best = max(0, -(-(samples - self._table_length) // self._best))
        rest = samples - of_best * self._best
        table = self._filled(rest)
        found = [self._best] * of_best
        while rest > 0:
            size = table[rest][1]
            found.append(size)
            rest -= size
        return tuple(sorted(found, reverse=True))

    def _filled(self, samples: int) -> list[tuple[float, int]]:
        """The least cost of each number of samples up to `samples`, and the size that it starts with."""
        table = self._table
        if len(table) <= samples:
            table = list(table)  # another thread may be reading, or filling, the old one
            for number in range(len(table), samples + 1):
                cost, size = min((cost + table[max(0, number - size)][0], -size) for size, cost in self._costs.items())
                table.append((cost, -size))
            self._table = table
        return table
