"""Resampling rows: the same samples give the same resamples in any order.

Rows are sorted and equal ones are counted, so that a resample of a million decisions is a draw from a few cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cells", "cells_of"]

CHUNK = 4_000_000
"""Weights held at a time; 8 bytes each."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Distinct rows in ascending order, `counts` of each, and the `units` that are drawn: samples, or whole clusters.

    Shapes: rows `(U, K)`; counts `(U,)`; `cluster` `(U,)`, the number of each row's cluster, or None.
    """

    rows: NDArray[Any]
    counts: NDArray[np.int64]
    units: int
    cluster: NDArray[np.int64] | None = None

    def resamples(self, number: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """Weights `(R, U)` of `number` samples of as many units, drawn with replacement, in chunks of R."""
        rng = np.random.default_rng(seed)
        cells = len(self.counts)
        step = max(1, CHUNK // max(cells, self.units if cells * 16 > self.units else 1))
        share = self.counts / self.units
        cell = None if self.cluster is not None else np.repeat(np.arange(cells), self.counts)
        for start in range(0, number, step):
            size = min(step, number - start)
            if self.cluster is None and cells * 16 <= self.units:
                yield rng.multinomial(self.units, share, size=size)
                continue
            drawn = rng.integers(0, self.units, (size, self.units), dtype=np.int64)
            if cell is not None:
                yield _tally(drawn if cells == self.units else cell[drawn], cells)
            else:
                yield self._spread(_tally(drawn, self.units))

    def without(self, groups: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """Weights `(R, U)` that leave out one of `groups` parts of about equal size, each in turn, in chunks of R."""
        cells = len(self.counts)
        part = np.random.default_rng(seed).permutation(self.units) % groups
        cell = np.repeat(np.arange(cells), self.counts)
        step = max(1, CHUNK // max(cells, self.units))
        for start in range(0, groups, step):
            stop = min(start + step, groups)
            if self.cluster is not None:
                kept = part[None, :] != np.arange(start, stop)[:, None]
                yield self._spread(kept.astype(np.int64))
                continue
            out = np.flatnonzero((part >= start) & (part < stop))
            left_out = np.bincount((part[out] - start) * cells + cell[out], minlength=(stop - start) * cells)
            yield self.counts - left_out.reshape(stop - start, cells)

    def without_one(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Weights `(R, U)` that leave out one unit, each kind of unit in turn, and how many there are of it, `(R,)`."""
        cells = len(self.counts)
        kinds = self.units if self.cluster is not None else cells
        step = max(1, CHUNK // cells)
        for start in range(0, kinds, step):
            left_out = np.arange(start, min(start + step, kinds))
            if self.cluster is not None:
                kept = (self.cluster[None, :] != left_out[:, None]) * self.counts
                yield kept, np.ones(len(left_out), np.int64)
            else:
                weights = np.repeat(self.counts[None, :], len(left_out), axis=0)
                weights[np.arange(len(left_out)), left_out] -= 1
                yield weights, self.counts[left_out]

    def _spread(self, weights: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(weights[:, self.cluster] * self.counts, np.int64)


def cells_of(rows: NDArray[Any], clusters: NDArray[Any] | None = None) -> Cells:
    """The distinct rows of samples `(N,)` or `(N, K)`, within each cluster where `clusters` `(N,)` names them.

    Example:
        >>> cells_of(np.array([2.0, 1.0, 2.0])).counts.tolist()
        [1, 2]
    """
    wide = rows.reshape(len(rows), -1)
    if wide.dtype != np.bool_:
        wide = wide + 0.0  # -0.0 becomes 0.0, so that equal rows have equal bits
    cluster = None if clusters is None else np.unique(clusters, return_inverse=True)[1].astype(np.int64)
    keys = tuple(wide.T[::-1]) + (() if cluster is None else (cluster,))
    order = np.lexsort(keys)
    ordered = wide[order]
    new = np.ones(len(ordered), np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    if cluster is not None:
        cluster = cluster[order]
        new[1:] |= cluster[1:] != cluster[:-1]
    starts = np.flatnonzero(new)
    counts = np.diff(np.append(starts, len(ordered))).astype(np.int64)
    distinct = ordered[starts].reshape((len(starts), *rows.shape[1:]))
    if cluster is None:
        return Cells(distinct, counts, len(rows))
    return Cells(distinct, counts, int(cluster[-1]) + 1, cluster[starts])


def _tally(drawn: NDArray[np.int64], kinds: int) -> NDArray[np.int64]:
    """How often each of `kinds` occurs in each row."""
    drawn += kinds * np.arange(len(drawn), dtype=np.int64)[:, None]
    return np.bincount(drawn.ravel(), minlength=len(drawn) * kinds).reshape(len(drawn), kinds)
