"""Class probabilities in float64 from what a model gives: logits, or probabilities where they are asked for by name.

numpy computes them, not torch: torch computes the last few elements of a tensor with other functions than the rest, so
that a sample's bits would depend on how many samples are beside it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalmode.errors import BatchError
from evalmode.measure.metric import class_scores, columns, first_samples

__all__ = [
    "SUM_TOLERANCE",
    "checked_probabilities",
    "checked_share",
    "finite_logits",
    "probabilities_of_logits",
    "share_of_logits",
]

SUM_TOLERANCE = 1e-2  # float16 and bfloat16 softmax rows are off 1 by up to about 4e-3


def finite_logits(logits: Tensor, *, metric: str) -> NDArray[np.float64]:
    """Logits that leave probabilities, as float64. Minus infinity rules a class out and is accepted.

    Shapes: `(N, C)`, gives the same.

    Raises:
        BatchError: another shape, a NaN, or a sample whose logits are infinite or all ruled out.
    """
    scores = class_scores(logits, metric=metric).double()
    bad = (scores == torch.inf).any(1) | (scores == -torch.inf).all(1)
    if bool(bad.any()):
        raise BatchError(
            f"{metric}: the logits leave no probabilities (Inf) in {first_samples(bad)}",
            expected="finite logits",
            fix="evalmode check TASK   # its clause `finite` points at the line",
            explain="finite",
        )
    return np.ascontiguousarray(scores.numpy())


def probabilities_of_logits(logits: Tensor, *, metric: str) -> NDArray[np.float64]:
    """The softmax of logits. Shapes: `(N, C)`, gives the same.

    Raises:
        BatchError: as `finite_logits`.
    """
    rows = finite_logits(logits, metric=metric)
    powers = np.exp(rows - rows.max(1)[:, None])
    return np.asarray(powers / powers.sum(1)[:, None], np.float64)


def checked_probabilities(outputs: Tensor, *, metric: str) -> NDArray[np.float64]:
    """Probabilities of classes as float64. Shapes: `(N, C)`, gives the same.

    Raises:
        BatchError: another shape, a NaN, or a row that is no distribution.
    """
    rows = class_scores(outputs, metric=metric).double()
    bad = (rows < 0).any(1) | ((rows.sum(1) - 1).abs() > SUM_TOLERANCE)
    if bool(bad.any()):
        raise BatchError(
            f"{metric}: the outputs are no probabilities in {first_samples(bad)}",
            expected="rows of numbers from 0 to 1 that sum to 1",
            fix=f"for logits use metrics = [{metric.removesuffix(' of probabilities')!r}]",
        )
    return np.ascontiguousarray(rows.numpy())


def share_of_logits(logits: Tensor, *, metric: str) -> NDArray[np.float64]:
    """The probability of the positive class from one logit per sample. Shapes: `(N,)` or `(N, 1)`, gives `(N,)`.

    Raises:
        BatchError: another shape, or a NaN.
    """
    scores = columns(logits, metric=metric, what="logits").numpy()
    return np.asarray(np.exp(-np.logaddexp(0.0, -scores)), np.float64)


def checked_share(outputs: Tensor, *, metric: str) -> NDArray[np.float64]:
    """The probability of the positive class, as it is given. Shapes: `(N,)` or `(N, 1)`, gives `(N,)`.

    Raises:
        BatchError: another shape, a NaN, or a number outside 0 to 1.
    """
    shares = columns(outputs, metric=metric, what="probabilities")
    bad = (shares < 0) | (shares > 1)
    if bool(bad.any()):
        raise BatchError(
            f"{metric}: the outputs are no probabilities in {first_samples(bad)}",
            expected="numbers from 0 to 1",
            fix=f"for logits use metrics = [{metric.removesuffix(' of probabilities')!r}]",
        )
    return np.ascontiguousarray(shares.numpy())
