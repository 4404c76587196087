"""The samples of several evaluations, matched by their ids: a paired comparison compares nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.errors import ComparisonError
from evalmode.evaluation.result import Evaluation
from evalmode.evaluation.samples import Samples
from evalmode.measure.catalog import is_listed, plain_name

__all__ = ["matched", "shared_metrics"]

_SAME_DATA = "evaluate them on the same data: evalmode.compare(model_a, model_b, data=data)"
_KEEP = "keep them: evalmode.evaluate(model, data, keep_predictions='predictions.parquet')"
_SHOWN = 5


def matched(results: Mapping[str, Evaluation]) -> tuple[Samples, ...]:
    """The samples of each result, all in the order of the first one.

    Raises:
        ComparisonError: a sample is in one result alone, or has another target.
    """
    names, found = tuple(results), tuple(result.samples for result in results.values())
    reference = found[0]
    order = np.argsort(reference.ids, kind="stable")
    aligned = [reference]
    for label, samples in zip(names[1:], found[1:], strict=True):
        placed = _placed(names[0], reference, order, label, samples, results)
        _require_same_targets(names[0], reference, label, placed)
        aligned.append(placed)
    return tuple(aligned)


def shared_metrics(results: Mapping[str, Evaluation], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the metrics that every result has rows of, in the order of the first: all, or those `wanted`.

    Raises:
        ComparisonError: a result has kept nothing, has an id twice, or lacks a metric that is wanted; or there is none
            that all have.
    """
    for label, result in results.items():
        _require_kept(label, result)
    kept = {
        label: [name for name in result.metrics if name in result.samples.rows] for label, result in results.items()
    }
    if wanted is None:
        first, *others = kept.values()
        shared = tuple(name for name in first if all(name in other for other in others))
        if not shared:
            told = "; ".join(f"{label} has {_listed(names)}" for label, names in kept.items())
            raise ComparisonError(
                f"the results have no metric in common: {told}",
                expected="at least one metric with a value for every sample in each of them",
                fix="evaluate them with the same metrics=",
            )
        return shared
    if not wanted:
        raise ComparisonError("no metric is named", expected="at least one", fix="leave metric out to compare all")
    chosen = []
    for given in wanted:
        for label, names in kept.items():
            known = {plain_name(name): name for name in names}
            if plain_name(given) not in known:
                raise ComparisonError(
                    f"{label} has kept no metric {given!r} of its samples",
                    expected=f"one of {_listed(names)}",
                    fix=f"evaluate it with metrics=[{given!r}]" if is_listed(given) else "give the metric itself",
                )
        chosen.append({plain_name(name): name for name in next(iter(kept.values()))}[plain_name(given)])
    return tuple(dict.fromkeys(chosen))


def _require_kept(label: str, result: Evaluation) -> None:
    samples = result.samples
    if not len(samples) or not samples.rows:
        what = "its figures alone, and no samples" if not len(samples) else "no metric of its samples"
        raise ComparisonError(f"{label} has kept {what}", expected="a value of every sample", fix=_KEEP)
    values, counts = np.unique(samples.ids, return_counts=True)
    if len(values) < len(samples):
        twice = values[counts > 1]
        raise ComparisonError(
            f"{label} has {_ids(twice)} more than once",
            expected="one row for each sample id",
            fix="name the samples apart: evalmode.evaluate(model, data, ids=...)",
        )


def _placed(
    first: str,
    reference: Samples,
    order: NDArray[np.intp],
    label: str,
    samples: Samples,
    results: Mapping[str, Evaluation],
) -> Samples:
    """`samples` in the order of the reference."""
    text = {True: "text", False: "whole numbers"}
    kinds = [values.dtype.kind in "OUST" for values in (reference.ids, samples.ids)]
    if kinds[0] is not kinds[1]:
        raise ComparisonError(
            f"the sample ids are {text[kinds[0]]} in {first} and {text[kinds[1]]} in {label}",
            expected="the same samples under the same ids",
            fix=_SAME_DATA,
        )
    places = np.argsort(samples.ids, kind="stable")
    if len(reference) == len(samples) and bool((reference.ids[order] == samples.ids[places]).all()):
        back = np.empty_like(places)
        back[order] = places
        return samples.where(back)
    only_first = np.setdiff1d(reference.ids, samples.ids)
    only_other = np.setdiff1d(samples.ids, reference.ids)
    told = [
        f"{label} has not {_ids(only_first)} of {first}" if len(only_first) else "",
        f"{first} has not {_ids(only_other)} of {label}" if len(only_other) else "",
    ]
    skipped = {name: result.record.skipped for name, result in results.items() if result.record.skipped}
    why = "".join(f"; {name} has skipped {count} bad samples" for name, count in skipped.items())
    raise ComparisonError(
        "the results hold other samples: " + ", and ".join(part for part in told if part) + why,
        expected="the same sample ids in both",
        fix=_SAME_DATA,
    )


def _require_same_targets(first: str, reference: Samples, label: str, samples: Samples) -> None:
    one, other = reference.target, samples.target
    if one is None or other is None:
        return
    if one.shape != other.shape:
        raise ComparisonError(
            f"the targets have shape {one.shape} in {first} and {other.shape} in {label}",
            expected="the same targets",
            fix=_SAME_DATA,
        )
    differing = one != other
    if one.dtype.kind in "fc" and other.dtype.kind in "fc":
        differing &= ~(np.isnan(one) & np.isnan(other))  # NaN beside NaN is no difference
    rows = np.asarray(differing).reshape(len(one), -1).any(1)
    if rows.any():
        raise ComparisonError(
            f"{label} has other targets than {first} for {_ids(reference.ids[rows])}",
            expected="the same target for each sample id",
            fix=_SAME_DATA,
        )


def _ids(ids: NDArray[Any]) -> str:
    """How many samples these are, and the first of them.

    Example:
        >>> _ids(np.array([3, 5]))
        '2 samples (3, 5)'
    """
    shown = ", ".join(str(one) for one in ids[:_SHOWN].tolist()) + (", ..." if len(ids) > _SHOWN else "")
    return f"{len(ids):,} sample{'s' if len(ids) != 1 else ''} ({shown})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
