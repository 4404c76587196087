"""Parts of the test set with figures of their own: by class, by a column, by a predicate, by quantiles; worst first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.certificate import SliceRecord
from evalmode.errors import EvalmodeError, TaskError, UsageError
from evalmode.evaluation.labels import given_values as one_each
from evalmode.evaluation.samples import Samples
from evalmode.measure.intervals import NO_SCIPY, has_scipy
from evalmode.measure.metric import Aggregate, Metric
from evalmode.measure.paired import holm
from evalmode.measure.summary import metric_record

__all__ = ["LEAST", "Cut", "cuts_of", "slice_records"]

LEAST = 20
"""Samples below which a slice is shown and not tested: its figures say next to nothing."""

_MOST_VALUES = 1000
_CLASS = ("class", "target", "label")
_MISSING = "missing"  # what a part of samples without a value is called
Parts = list[tuple[str, NDArray[np.bool_]]]


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to cut the test set: `parts(samples)` are names and masks. `columns` are those that it reads; with
    `every`, any column of the data."""

    by: str
    parts: Callable[[Samples], Parts] = field(repr=False)
    columns: tuple[str, ...] = ()
    every: bool = False


def cuts_of(slices: Any) -> tuple[Cut, ...]:
    """The ways to cut that were asked for.

    `"class"` cuts by target, any other text by that column, `("column", 4)` by quarters of a column. A mapping gives
    names to predicates (from columns to booleans) and to arrays of values, one of each sample.

    Raises:
        UsageError: it is none of these.

    Example:
        >>> [cut.by for cut in cuts_of(["class", ("age", 4)])]
        ['class', 'age']
    """
    if slices is None:
        return ()
    if isinstance(slices, str) or callable(slices) or _is_quantiles(slices):
        slices = [slices]
    if isinstance(slices, Mapping):
        return tuple(_named(str(name), what) for name, what in slices.items())
    if not isinstance(slices, Iterable):
        raise _no_slice(slices)
    found: list[Cut] = []
    for entry in slices:
        if isinstance(entry, Mapping):
            found += cuts_of(entry)
        elif isinstance(entry, str):
            found.append(_column(entry))
        elif _is_quantiles(entry):
            found.append(_quantiles(entry[0], entry[1]))
        elif callable(entry):
            found.append(_predicate(getattr(entry, "__name__", "predicate").replace("<lambda>", "predicate"), entry))
        else:
            raise _no_slice(entry)
    return tuple(found)


def slice_records(
    cuts: Sequence[Cut],
    samples: Samples,
    metrics: Sequence[Metric],
    confidence: float,
    clusters: NDArray[Any] | None = None,
) -> tuple[SliceRecord, ...]:
    """Every part with its figures, worst first by the first metric.

    Each part of at least `LEAST` samples is tested against the rest on the first metric (Fisher's exact test for a
    proportion, Welch's t test for a mean), and the probabilities are adjusted for all of them (Holm).

    Raises:
        TaskError: a column is missing, or a predicate fails.
    """
    found: list[tuple[SliceRecord, float | None]] = []
    for cut in cuts:
        for name, chosen in cut.parts(samples):
            record, p_value = _record(cut.by, name, chosen, samples, metrics, confidence, clusters)
            found.append((record, p_value))
    tested = [place for place, (_, p_value) in enumerate(found) if p_value is not None]
    adjusted = holm([p for _, p in found if p is not None])
    records = [record for record, _ in found]
    for place, p_value in zip(tested, adjusted, strict=True):
        records[place] = _replaced(records[place], p_value)
    better = metrics[0].higher_is_better if metrics else None
    if better is None and metrics and metrics[0].aggregate is Aggregate.PROPORTION:
        better = True  # a figure of one's own that does not say it: shares usually count what is right
    first = metrics[0].name if metrics else ""
    return tuple(sorted(records, key=lambda record: _badness(record, first, better)))


def _replaced(record: SliceRecord, p_value: float) -> SliceRecord:
    return SliceRecord(
        by=record.by,
        name=record.name,
        samples=record.samples,
        metrics=record.metrics,
        p_value=p_value,
        note=record.note,
    )


def _badness(record: SliceRecord, metric: str, higher_is_better: bool | None) -> tuple[bool, bool, float, str, str]:
    """Large enough parts first, the worst figure of the metric first, then those that have none."""
    values = [figure.value for figure in record.metrics if figure.name == metric and not math.isnan(figure.value)]
    worst = 0.0 if not values else values[0] if higher_is_better else -values[0]
    return record.samples < LEAST, not values, worst, record.by, record.name


def _record(
    by: str,
    name: str,
    chosen: NDArray[np.bool_],
    samples: Samples,
    metrics: Sequence[Metric],
    confidence: float,
    clusters: NDArray[Any] | None,
) -> tuple[SliceRecord, float | None]:
    part = samples.where(chosen)
    figures, notes = [], []
    for metric in metrics:
        try:
            figures.append(
                metric_record(
                    metric, part.rows[metric.name], confidence, None if clusters is None else clusters[chosen]
                )
            )
        except EvalmodeError as error:  # as AUROC of one class alone
            notes.append(error.got)
    p_value = None
    if not metrics or not len(part):
        notes.append("no samples" if metrics else "no metrics")
    elif len(part) < LEAST:
        notes.append(f"fewer than {LEAST} samples: not tested")
    elif len(samples) - len(part) < LEAST:
        notes.append(f"the rest has fewer than {LEAST} samples: not tested")
    elif clusters is not None:
        notes.append("samples come in groups: not tested")
    elif not has_scipy():
        notes.append(f"not tested: {NO_SCIPY.removeprefix('no interval: ')}")
    else:
        p_value = _p_value(metrics[0], *(samples.rows[metrics[0].name][kept] for kept in (chosen, ~chosen)))
        if p_value is None:
            notes.append(f"{metrics[0].name} cannot be tested between parts")
    record = SliceRecord(by=by, name=name, samples=len(part), metrics=tuple(figures), note="; ".join(notes))
    return record, p_value


def _p_value(metric: Metric, part: NDArray[Any], rest: NDArray[Any]) -> float | None:
    """The probability of a difference at least this large by chance; None where the metric has no value per sample.

    Source: Fisher, "Statistical methods for research workers" (1934); Welch, Biometrika 34 (1947).
    """
    from scipy.stats import fisher_exact

    if metric.aggregate is Aggregate.PROPORTION:
        counts = [[int(rows.sum()), int(len(rows) - rows.sum())] for rows in (part, rest)]
        return float(fisher_exact(counts).pvalue)
    if metric.statistic is not None or part.ndim != 1 or not bool(np.isfinite(part).all() and np.isfinite(rest).all()):
        return None
    return _welch(np.sort(part.astype(np.float64)), np.sort(rest.astype(np.float64)))


def _welch(part: NDArray[np.float64], rest: NDArray[np.float64]) -> float:
    from scipy.stats import t

    means = [math.fsum(values) / len(values) for values in (part, rest)]
    errors = [
        math.fsum((values - mean) ** 2) / (len(values) - 1) / len(values)
        for values, mean in zip((part, rest), means, strict=True)
    ]
    variance = sum(errors)
    if variance == 0:
        return 1.0 if means[0] == means[1] else 0.0
    freedom = variance**2 / sum(
        error**2 / (len(values) - 1) for error, values in zip(errors, (part, rest), strict=True)
    )
    return float(2 * t.sf(abs(means[0] - means[1]) / math.sqrt(variance), freedom))


def _named(name: str, what: Any) -> Cut:
    if callable(what):
        return _predicate(name, what)
    if isinstance(what, str):
        cut = _column(what)
        return Cut(name, cut.parts, cut.columns)
    if _is_quantiles(what):
        cut = _quantiles(what[0], what[1])
        return Cut(name, cut.parts, cut.columns)
    if isinstance(what, str | bytes | Mapping) or not (hasattr(what, "__len__") and hasattr(what, "__getitem__")):
        raise _no_slice(what)

    def parts(samples: Samples) -> Parts:
        return _by_value(name, samples.columns[f"slices={name}"])

    return Cut(name, parts)


def values_of(slices: Any) -> dict[str, NDArray[Any]]:
    """The values of every sample that were given as arrays, by the name of the column that holds them."""
    found: dict[str, NDArray[Any]] = {}
    entries = [slices] if isinstance(slices, Mapping) else slices if isinstance(slices, list | tuple) else []
    for entry in entries:
        for name, what in entry.items() if isinstance(entry, Mapping) else ():
            if not callable(what) and not isinstance(what, str) and not _is_quantiles(what):
                found[f"slices={name}"] = one_each(what, f"the slice {name!r}")
    return found


def _is_quantiles(what: Any) -> bool:
    return isinstance(what, tuple) and len(what) == 2 and isinstance(what[0], str) and type(what[1]) is int


def _column(name: str) -> Cut:
    if name in _CLASS:
        return Cut("class", lambda samples: _by_value("class", _target(samples)))
    return Cut(name, lambda samples: _by_value(name, _column_of(samples, name)), (name,))


def _quantiles(name: str, number: int) -> Cut:
    if number < 2:
        raise UsageError(f"({name!r}, {number}) cuts a column into {number} parts", expected="at least 2 parts")

    def parts(samples: Samples) -> Parts:
        values = _column_of(samples, name)
        if values.dtype.kind not in "biuf":
            raise TaskError(
                f"the column {name!r} holds no numbers, so it has no quantiles", fix=f"slices=[{name!r}] cuts by value"
            )
        if values.dtype.kind == "b":
            return _by_value(name, values)
        absent = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
        found: Parts = [(_MISSING, absent)] if absent.any() else []
        if absent.all():
            return found
        edges = _edges(values[~absent], number)
        named = _distinct(edges)
        if len(edges) < 2:
            return [(named[0], ~absent), *found]
        for place, (low, high) in enumerate(itertools.pairwise(edges)):
            last = place == len(edges) - 2
            inside = (values >= low) & ((values <= high) if last else (values < high))
            found.append((f"{named[place]} to {'' if last else 'below '}{named[place + 1]}", inside))
        return found

    return Cut(name, parts, (name,))


def _edges(values: NDArray[Any], number: int) -> list[float]:
    """Where the parts begin and end; beside an infinity, which has no value halfway, values that are there."""
    shares = np.linspace(0, 1, number + 1)
    if np.isfinite(values).all():
        edges = np.quantile(values, shares)
    else:
        edges = np.sort(values)[np.floor(shares * (len(values) - 1)).astype(int)]
    return [float(edge) for edge in np.unique(edges)]


def _distinct(edges: list[float]) -> list[str]:
    """The edges in as many digits as tell them apart, six at least; whole numbers are then written out."""
    digits = next((count for count in range(6, 17) if len({f"{edge:.{count}g}" for edge in edges}) == len(edges)), 17)
    if digits > 6:
        largest = max(abs(edge) for edge in edges if math.isfinite(edge))
        digits = max(digits, min(len(f"{largest:.0f}"), 17))
    return [f"{edge:.{digits}g}" for edge in edges]


def _predicate(name: str, predicate: Callable[[Mapping[str, NDArray[Any]]], Any]) -> Cut:
    def parts(samples: Samples) -> Parts:
        seen: dict[str, NDArray[Any]] = {"id": samples.ids, **samples.columns}
        for key in ("target", "prediction", "confidence"):
            values = getattr(samples, key)
            if values is not None:
                seen.setdefault(key, values)
        try:
            chosen = np.asarray(predicate(seen))
        except Exception as error:
            raise TaskError(
                f"the slice {name!r} failed: {type(error).__name__}: {error}",
                expected=f"booleans of shape ({len(samples)},) from columns: {', '.join(seen)}",
                fix="slices={'long': lambda columns: columns['length'] > 100}",
            ) from error
        if chosen.shape != (len(samples),) or chosen.dtype != np.bool_:
            raise TaskError(
                f"the slice {name!r} gave {chosen.dtype} of shape {chosen.shape}",
                expected=f"booleans of shape ({len(samples)},)",
                fix="slices={'long': lambda columns: columns['length'] > 100}",
            )
        return [(name, chosen)]

    return Cut(name, parts, every=True)


def _target(samples: Samples) -> NDArray[Any]:
    if samples.target is None or samples.target.reshape(len(samples), -1).shape[1] != 1:
        raise TaskError("slices by class need one class for each sample as target", fix="name a column instead")
    return samples.target.reshape(-1)


def _column_of(samples: Samples, name: str) -> NDArray[Any]:
    if name not in samples.columns:
        there = ", ".join(sorted(samples.columns)) or "none"
        raise TaskError(
            f"the data has no column {name!r} to cut slices by",
            expected=f"a column of one value for each sample: {there}",
            fix="give the values themselves, slices={'site': array}",
        )
    return samples.columns[name]


def _by_value(by: str, values: NDArray[Any]) -> Parts:
    absent = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
    different = np.unique(values[~absent])
    if len(different) > _MOST_VALUES:
        raise TaskError(
            f"{by!r} has {len(different)} different values",
            expected=f"at most {_MOST_VALUES} slices",
            fix=f"slices=[({by!r}, 4)] cuts by quarters" if by not in _CLASS else "name a coarser column",
        )
    parts = [(str(value), values == value) for value in different.tolist()]
    return [*parts, (_MISSING, absent)] if absent.any() else parts


def _no_slice(what: object) -> UsageError:
    return UsageError(
        f"slices has {what!r}"[:200],
        expected="'class', the name of a column, ('column', 4) for quarters, or names with predicates or arrays",
        fix="slices=['class', ('length', 4), {'night': lambda columns: columns['hour'] > 20}]",
    )
