"""From what was kept of the samples to the record: figures with intervals, confusion, calibration, the worst."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.certificate import CalibrationBin, ConfusionRecord, MetricRecord, SampleRecord
from evalmode.errors import UsageError
from evalmode.evaluation.choice import Chosen
from evalmode.evaluation.samples import Samples
from evalmode.measure.metric import Aggregate, Metric, metric_of
from evalmode.measure.summary import metric_record

__all__ = ["calibration", "data_digest", "metrics_of", "records_of", "worst_samples"]

_WORST = 16


def metrics_of(chosen: Sequence[Chosen], samples: Samples) -> dict[str, Metric]:
    """The metrics by name; those of a user's own functions are made for their values."""
    return {one.name: one.metric or metric_of(one.name, samples.rows[one.name]) for one in chosen}


def records_of(
    metrics: Mapping[str, Metric], samples: Samples, confidence: float, clusters: NDArray[Any] | None
) -> tuple[tuple[MetricRecord, ...], list[str]]:
    """Every figure with its interval, and in words which could not be given."""
    found, notes = [], []
    for name, metric in metrics.items():
        try:
            found.append(metric_record(metric, samples.rows[name], confidence, clusters))
        except UsageError as error:  # as AUROC where every target is of one class
            notes.append(f"{name}: {error.got}")
    return tuple(found), notes


def worst_samples(metrics: Mapping[str, Metric], samples: Samples, count: int = _WORST) -> tuple[SampleRecord, ...]:
    """The samples with the largest loss: of the first metric that has a value per sample where less is better."""
    ranked = _loss(metrics, samples)
    if ranked is None:
        return ()
    order = np.lexsort((np.arange(len(ranked)), -ranked))[:count]
    return tuple(
        SampleRecord(
            id=str(samples.ids[place]),
            target=_shown(samples.target, place),
            prediction=_shown(samples.prediction, place),
            loss=float(ranked[place]),
        )
        for place in order.tolist()
    )


def _loss(metrics: Mapping[str, Metric], samples: Samples) -> NDArray[np.float64] | None:
    for name, metric in metrics.items():
        rows = samples.rows[name]
        lower = metric.higher_is_better is False or (metric.higher_is_better is None and name == "loss")
        if lower and rows.ndim == 1 and metric.statistic is None:
            return rows.astype(np.float64)
    for name, metric in metrics.items():
        if metric.aggregate is Aggregate.PROPORTION:
            return 1.0 - samples.rows[name].astype(np.float64)
    return None


def _shown(values: NDArray[Any] | None, place: int) -> str:
    if values is None:
        return ""
    value = values[place]
    flat = np.atleast_1d(value).reshape(-1)
    texts = [f"{number:.4g}" if flat.dtype.kind == "f" else str(number) for number in flat[:4]]
    return ", ".join(texts) + (", ..." if flat.size > 4 else "")


def confusion_of(samples: Samples, most: int = 200) -> ConfusionRecord | None:
    """How often each class was answered with each; None where answers and targets are no classes."""
    target, prediction = samples.target, samples.prediction
    if target is None or prediction is None or "f" in {target.dtype.kind, prediction.dtype.kind}:
        return None
    if target.size != len(samples) or prediction.size != len(samples) or not len(samples):
        return None
    labels, places = np.unique(np.concatenate([target.reshape(-1), prediction.reshape(-1)]), return_inverse=True)
    if len(labels) > most:
        return None
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, (places[: len(samples)], places[len(samples) :]), 1)
    return ConfusionRecord(
        labels=tuple(str(label) for label in labels.tolist()), counts=tuple(tuple(row) for row in counts.tolist())
    )


def calibration(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 15
) -> tuple[CalibrationBin, ...]:
    """Samples by the probability that the model gave its answer, beside the share of right answers.

    Source: Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML (2017).

    Example:
        >>> [entry.accuracy for entry in calibration(np.array([0.9, 0.95]), np.array([True, False]), bins=2)]
        [None, 0.5]
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        inside = place == number
        count = int(inside.sum())
        found.append(
            CalibrationBin(
                low=number / bins,
                high=(number + 1) / bins,
                count=count,
                confidence=float(np.sort(confidence[inside]).sum() / count) if count else None,
                accuracy=int(right[inside].sum()) / count if count else None,
            )
        )
    return tuple(found)


def data_digest(samples: Samples) -> str:
    """SHA-256 over the samples' ids and targets in the order of the data."""
    digest = hashlib.sha256()
    for values in (samples.ids, samples.target):
        if values is None:
            digest.update(b"none")
            continue
        digest.update(f"{values.dtype.kind}{values.shape}".encode())
        digest.update(
            np.ascontiguousarray(values).tobytes() if values.dtype.kind != "U" else "\0".join(values.tolist()).encode()
        )
    return digest.hexdigest()
