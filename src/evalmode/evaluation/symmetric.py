"""A paired test that does not depend on which of two models is named first: changing places changes the sign alone.

A bootstrap of b - a draws other resamples than one of a - b. So the two are always tested in one order, which is that
of their rows, and the result is mirrored where they were given the other way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.measure.metric import Metric
from evalmode.measure.paired import Paired, paired

__all__ = ["symmetric_paired"]


def symmetric_paired(
    metric: Metric,
    rows_a: NDArray[Any],
    rows_b: NDArray[Any],
    *,
    confidence: float = 0.95,
    margin: float | None = None,
    clusters: NDArray[Any] | None = None,
) -> Paired:
    """`paired`, with the same bits, mirrored, when the two change places.

    Shapes: rows `(N,)` or `(N, K)`, clusters `(N,)`.

    Example:
        >>> from evalmode.measure.metric import metric_of
        >>> a, b = np.array([1.0, 2.0, 5.0, 3.0]), np.array([2.0, 2.5, 5.0, 1.0])
        >>> there, back = symmetric_paired(metric_of("m", a), a, b), symmetric_paired(metric_of("m", a), b, a)
        >>> there.low == -back.high
        True
    """
    options: dict[str, Any] = {"confidence": confidence, "margin": margin, "clusters": clusters}
    if _in_order(rows_a, rows_b, clusters):
        return paired(metric, rows_a, rows_b, **options)
    better = metric.higher_is_better
    # b is not inferior to a where a, by a metric of the other direction, is not inferior to b.
    turned = replace(metric, higher_is_better=None if better is None else not better)
    found = paired(turned, rows_b, rows_a, **options)
    return replace(
        found,
        value_a=found.value_b,
        value_b=found.value_a,
        effect=-found.effect,
        low=None if found.high is None else -found.high,
        high=None if found.low is None else -found.low,
        only_a=found.only_b,
        only_b=found.only_a,
    )


def _in_order(rows_a: NDArray[Any], rows_b: NDArray[Any], clusters: NDArray[Any] | None) -> bool:
    """Whether a comes first, whatever the order of the samples."""
    if rows_a.shape != rows_b.shape:
        return True
    one, other = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (rows_a, rows_b))
    groups = [] if clusters is None else [np.unique(clusters, return_inverse=True)[1][:, None]]
    straight, turned = (_ordered(np.concatenate([*pair, *groups], axis=1)) for pair in ((one, other), (other, one)))
    differing = np.flatnonzero(straight != turned)
    return not len(differing) or bool(straight.flat[differing[0]] < turned.flat[differing[0]])


def _ordered(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows[np.lexsort(rows.T[::-1])]
