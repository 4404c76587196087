"""Figures that are functions of sums over samples, as a ratio of two sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.errors import UndefinedFigureError
from evalmode.measure.exact import exact_sum

__all__ = ["SumStatistic"]


@dataclass(frozen=True, slots=True)
class SumStatistic:
    """A function of the sums of each column.

    `of_sums` maps sums `(R, K)` to figures `(R,)`, NaN where they are undefined; each figure from its own row alone.
    `undefined` says in words when that happens, `expected` what has to be there.
    """

    name: str
    of_sums: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    undefined: str
    expected: str

    def figure(self, rows: NDArray[Any]) -> float:
        """The figure of rows `(N, K)`: of correctly rounded sums, so that their order does not matter.

        Raises:
            UndefinedFigureError: the sums leave it undefined.
        """
        sums = np.array([[exact_sum(rows[:, column]) for column in range(rows.shape[1])]])
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            value = float(self.of_sums(sums)[0])
        if np.isnan(value):
            raise UndefinedFigureError(f"{self.name} of {len(rows)} samples: {self.undefined}", expected=self.expected)
        return value

    def resampled(self, rows: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
        """The figures of R weightings `(R, N)` of rows `(N, K)`.

        Whole numbers are summed by BLAS, whose order of summing does not show in them; others without it.
        """
        wide, rows = weights.astype(np.float64), rows.astype(np.float64)
        whole = bool((rows == np.trunc(rows)).all())
        sums = wide @ rows if whole else np.einsum("rn,nk->rk", wide, rows)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return np.asarray(self.of_sums(np.asarray(sums, np.float64)), np.float64)

    def trials(self, rows: NDArray[Any]) -> tuple[int, ...]:
        """Nothing: sums are no counts of trials."""
        return ()
