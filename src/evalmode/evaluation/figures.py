"""From what was kept of the samples to the record: figures with intervals, confusion, calibration, the worst."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.certificate import CalibrationBin, ConfusionRecord, MetricRecord, SampleRecord
from evalmode.errors import UsageError
from evalmode.evaluation.choice import Chosen
from evalmode.evaluation.samples import Samples
from evalmode.measure.calibration import calibration_bins
from evalmode.measure.confusion import confusion
from evalmode.measure.metric import Aggregate, Metric, metric_of
from evalmode.measure.summary import metric_record

__all__ = ["calibration_of", "confusion_of", "data_digest", "metrics_of", "records_of", "worst_samples"]

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


def worst_samples(
    metrics: Mapping[str, Metric], samples: Samples, picture: Callable[[int], str], count: int = _WORST
) -> tuple[SampleRecord, ...]:
    """The samples with the largest loss: of the first metric that has a value per sample where less is better.

    `picture(place)` draws the sample at a place of `samples`.
    """
    ranked = _loss(metrics, samples)
    if ranked is None:
        return ()
    places = np.arange(len(ranked))
    if len(ranked) > count:
        places = np.flatnonzero(ranked >= np.partition(ranked, -count)[-count])
    order = places[np.lexsort((places, -ranked[places]))][:count]
    return tuple(
        SampleRecord(
            id=str(samples.ids[place]),
            target=_shown(samples.target, place),
            prediction=_shown(samples.prediction, place),
            loss=float(ranked[place]),
            image=picture(place),
        )
        for place in order.tolist()
    )


def _loss(metrics: Mapping[str, Metric], samples: Samples) -> NDArray[np.float64] | None:
    for name, metric in metrics.items():
        rows = samples.rows[name]
        lower = metric.higher_is_better is False or (metric.higher_is_better is None and name == "loss")
        if lower and rows.ndim == 1 and metric.statistic is None:
            return rows.astype(np.float64, copy=False)
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
    """How often each class was answered with each; None where answers and targets are no classes, or too many."""
    pair = _classes(samples)
    if pair is None or min(part.min() for part in pair) < 0 or max(part.max() for part in pair) >= most:
        return None
    return confusion(*pair)


def calibration_of(samples: Samples) -> tuple[CalibrationBin, ...]:
    """Samples by the probability that the model gave its answer; empty where it gave none."""
    sureness, pair = samples.confidence, _classes(samples)
    if sureness is None or pair is None or not bool(np.isfinite(sureness).all()):
        return ()
    answers, target = pair
    # One score per sample, from 0 to 1, is a probability: here that of being right.
    return calibration_bins(sureness, (answers == target).astype(np.int64))


def _classes(samples: Samples) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Answers and targets, where each is one whole number for each sample."""
    target, answers = samples.target, samples.prediction
    if target is None or answers is None or not len(samples):
        return None
    if (
        answers.size != len(samples)
        or target.size != len(samples)
        or not {answers.dtype.kind, target.dtype.kind} <= {*"biu"}
    ):
        return None
    return answers.reshape(-1).astype(np.int64, copy=False), target.reshape(-1).astype(np.int64, copy=False)


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
