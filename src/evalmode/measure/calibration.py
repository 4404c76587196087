"""Calibration: how often answers are right, by how sure the model was of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.certificate import CalibrationBin
from evalmode.errors import UsageError
from evalmode.measure.exact import exact_mean
from evalmode.measure.expected_calibration_error import BINS, in_bins
from evalmode.measure.probabilities import SUM_TOLERANCE

__all__ = ["calibration_bins"]


def calibration_bins(scores: NDArray[Any], target: NDArray[Any], bins: int = BINS) -> tuple[CalibrationBin, ...]:
    """The bins of a reliability diagram, of equal width, those without samples among them.

    Scores whose rows are distributions are taken as probabilities, others as logits. One score per sample is that of
    class 1, taken as a probability where all lie from 0 to 1: its bins hold the share of class 1.

    Shapes: scores `(N, C)`, `(N, 1)` or `(N,)`; target `(N,)` class indices.

    Raises:
        UsageError: shapes or lengths do not fit, there are no samples, a score is NaN or leaves no probabilities, or a
            class index is out of range.

    Example:
        >>> found = calibration_bins(np.array([[0.95, 0.05], [0.05, 0.95]]), np.array([0, 0]), bins=2)
        >>> found[1].count, found[1].confidence, found[1].accuracy
        (2, 0.95, 0.5)
    """
    scores = scores.astype(np.float64, copy=False)
    if scores.ndim == 2 and scores.shape[1] == 1:
        scores = scores[:, 0]
    if scores.ndim not in {1, 2} or target.shape != scores.shape[:1] or not len(scores) or bins < 1:
        raise UsageError(
            f"calibration of scores of shape {scores.shape} against a target of shape {target.shape} in {bins} bins",
            expected="scores (N, C) or (N,), a class index for each, at least one sample and one bin",
        )
    classes = scores.shape[1] if scores.ndim == 2 else 2
    if (
        target.min() < 0
        or target.max() >= classes
        or (target.dtype.kind == "f" and bool((target != np.trunc(target)).any()))
    ):
        raise UsageError("calibration: a target is no class index", expected=f"whole numbers from 0 to {classes - 1}")
    confidence, right = _sureness(scores, target.astype(np.int64, copy=False))
    place = in_bins(confidence, bins).astype(np.min_scalar_type(bins))
    return tuple(_bin(number, bins, confidence[place == number], right[place == number]) for number in range(bins))


def _sureness(scores: NDArray[np.float64], target: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    if bool(np.isnan(scores).any()) or bool(np.isposinf(scores).any()):
        raise UsageError("calibration: a score is NaN or infinite", expected="finite scores")
    if scores.ndim == 1:
        if bool(((scores >= 0) & (scores <= 1)).all()):
            return scores, target == 1
        return np.exp(-np.logaddexp(0.0, -scores)), target == 1
    sums_to_one = np.abs(scores.sum(1) - 1) <= SUM_TOLERANCE
    answer = scores.argmax(1)
    if bool((scores >= 0).all() and sums_to_one.all()):
        return scores.max(1).clip(0.0, 1.0), answer == target
    if bool(np.isneginf(scores).all(1).any()):
        raise UsageError("calibration: all scores of a sample are -Inf", expected="finite scores")
    powers = np.exp(scores - scores.max(1)[:, None])
    return (powers / powers.sum(1)[:, None]).max(1), answer == target


def _bin(number: int, bins: int, confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> CalibrationBin:
    count = len(confidence)
    return CalibrationBin(
        low=number / bins,
        high=(number + 1) / bins,
        count=count,
        confidence=exact_mean(confidence) if count else None,
        accuracy=int(right.sum()) / count if count else None,
    )
