"""Tokens: what a sequence model gives at each place that has a target, summed over a sample's own places."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalmode.errors import BatchError
from evalmode.measure.metric import equal_length, refuse_nan

__all__ = ["IGNORED", "losses_of_tokens", "summed_over_tokens"]

IGNORED = -100
"""The target of places that do not count, as for torch.nn.functional.cross_entropy."""

PLACES = 256
"""Places widened to float64 at a time: vocabularies are large."""


def summed_over_tokens(
    outputs: Tensor,
    target: Tensor,
    value: Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]],
    *,
    metric: str,
) -> Tensor:
    """The sum of `value(scores, targets)` over each sample's places that count, and their number.

    The sum is correctly rounded, so that it does not depend on the padding around the places.

    Shapes: outputs `(N, T, C)`; target `(N, T)` with `IGNORED` at places that do not count; `value` takes `(P, C)` and
    `(P,)` and gives `(P,)`; gives `(N, 2)` float64.

    Raises:
        BatchError: shapes or lengths do not fit, a class index is out of range, a score that counts is NaN.
    """
    equal_length(outputs, target, metric=metric)
    outputs, target = outputs.detach().cpu(), target.detach().cpu()
    fits = outputs.ndim == 3 and outputs.is_floating_point() and outputs.shape[:2] == target.shape
    if not fits or target.is_floating_point() or target.is_complex():
        raise BatchError(
            f"{metric}: outputs of shape {tuple(outputs.shape)} and dtype {outputs.dtype} against a target of shape "
            f"{tuple(target.shape)} and dtype {target.dtype}",
            expected="scores of shape (N, T, C), the classes last, and whole numbers of shape (N, T)",
            fix="return outputs.transpose(1, 2)   # in prediction(outputs), where the classes come second",
        )
    target = target.long()  # in fewer bits -100 and the number of classes would be other numbers
    kept, classes = target != IGNORED, outputs.shape[2]
    bad = kept & ((target < 0) | (target >= classes))
    if bool(bad.any()):
        raise BatchError(
            f"{metric}: the token is {int(target[bad][0])}",
            expected=f"class indices from 0 to {classes - 1}, or {IGNORED} for places that do not count",
        )
    refuse_nan(torch.where(kept[:, :, None], outputs, 0.0), metric=metric, what="scores")
    rows = []
    for scores, wanted, counted in zip(outputs, target, kept, strict=True):
        parts = [
            value(part.double().numpy(), labels.numpy())
            for part, labels in zip(scores[counted].split(PLACES), wanted[counted].split(PLACES), strict=True)
        ]
        rows.append([math.fsum(np.concatenate(parts)), int(counted.sum())])
    return torch.tensor(rows, dtype=torch.float64)


def losses_of_tokens(outputs: Tensor, target: Tensor, *, metric: str) -> Tensor:
    """The summed log loss of each sample's tokens, in nats, and their number. Shapes and errors as above."""

    def loss(scores: NDArray[np.float64], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
        highest = scores.max(1)
        chosen = scores[np.arange(len(scores)), wanted]
        return np.asarray(np.log(np.exp(scores - highest[:, None]).sum(1)) - (chosen - highest), np.float64)

    return summed_over_tokens(outputs, target, loss, metric=metric)
