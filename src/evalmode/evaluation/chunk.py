"""A part of an evaluation: what is kept of some samples, whatever their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.certificate import BadSampleRecord
from evalmode.errors import UsageError

__all__ = ["Chunk", "under"]

Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some samples of an evaluation, as a journal records them in one transaction.

    `positions` are the places of the samples in the data, from 0; `bad` are the samples that were left out beside them,
    at `bad_positions`. `confidence` has two numbers for each sample: its largest score where its scores are
    probabilities, else NaN, and the largest probability where they are logits. `digests` tell the samples as they were
    read from others. `told` is what the runner knew of the model when the chunk was made. The rest is as in `Samples`.

    Shapes: `positions` and `ids` `(N,)`; `target`, `prediction` `(N, ...)` or None; `scores` `(N, C)` or None;
    `confidence` `(N, 2)` or None; each of `rows` `(N,)` or `(N, K)`;
    each of `columns` `(N,)`; `digests` `(N,)` or None.

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
    bad_positions: tuple[int, ...] = ()
    confidence: Values | None = None
    digests: Values | None = None
    told: bytes = b""

    def __post_init__(self) -> None:
        positions = self.positions
        if positions.ndim != 1 or positions.dtype != np.int64:
            raise UsageError(f"positions are {_described(positions)}", expected="int64 of shape (N,)")
        if len(self.bad) != len(self.bad_positions):
            raise UsageError(
                f"{len(self.bad_positions)} positions of {len(self.bad)} bad samples", expected="one for each"
            )
        every = self.done_positions
        if every.size and (every.min() < 0 or len(np.unique(every)) != every.size):
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
    def done_positions(self) -> NDArray[np.int64]:
        """The places of the samples that it answers for: those it holds and those left out."""
        if not self.bad_positions:
            return self.positions
        return np.concatenate([self.positions, np.array(self.bad_positions, np.int64)])

    def arrays(self) -> dict[str, Values]:
        """Every array beside the positions, by a name that is its own: `rows/accuracy`, `columns/group`, `scores`."""
        single = {
            "ids": self.ids,
            "target": self.target,
            "prediction": self.prediction,
            "scores": self.scores,
            "confidence": self.confidence,
            "digests": self.digests,
        }
        return {
            **{name: values for name, values in single.items() if values is not None},
            **{f"rows/{name}": values for name, values in self.rows.items()},
            **{f"columns/{name}": values for name, values in self.columns.items()},
        }


def under(prefix: str, arrays: Mapping[str, Values]) -> dict[str, Values]:
    """The arrays whose names begin with `prefix`, without it: what `Chunk.arrays` put together.

    Example:
        >>> list(under("rows/", {"ids": np.zeros(1), "rows/loss": np.zeros(1)}))
        ['loss']
    """
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _described(values: Values) -> str:
    return f"{values.dtype} of shape {values.shape}"
