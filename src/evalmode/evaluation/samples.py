"""What an evaluation keeps of each sample: its id, target, answer, scores, and its part in every metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Samples"]


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of an evaluation in the order of the data, whatever the order in which they were run.

    `rows` holds for every metric what it reads of each sample: booleans or float64, one number or several. `confidence`
    is the probability that a classifier gave to its answer. `columns` are further values by name, as those that slices
    are cut by.

    Shapes: `ids` `(N,)`, whole numbers or text; `target`, `prediction` `(N, ...)` or None; `scores` `(N, C)` or None;
    `confidence` `(N,)` or None; each of `rows` `(N,)` or `(N, K)`; each of `columns` `(N,)`.
    """

    ids: NDArray[Any]
    rows: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    target: NDArray[Any] | None = None
    prediction: NDArray[Any] | None = None
    scores: NDArray[Any] | None = None
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    confidence: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Samples:
        """The samples for which `chosen`, of shape `(N,)`, is true; or those at the places that it lists, in its order.

        Example:
            >>> len(Samples(np.arange(3)).where(np.array([True, False, True])))
            2
        """

        def cut(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[chosen]

        return Samples(
            self.ids[chosen],
            {name: values[chosen] for name, values in self.rows.items()},
            cut(self.target),
            cut(self.prediction),
            cut(self.scores),
            {name: values[chosen] for name, values in self.columns.items()},
            cut(self.confidence),
        )
