"""`evalmode.compare`: whether one model is better than another on the same samples, or as good within a margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from evalmode.errors import ComparisonError, UsageError
from evalmode.evaluation.contestants import contestants, known_proportions
from evalmode.evaluation.effects import (
    Effect,
    Flipped,
    Outcome,
    adjusted,
    flipped_by,
    margin_of,
    plain,
    refuse_whole,
)
from evalmode.evaluation.labels import each_apart
from evalmode.evaluation.matching import matched, shared_metrics
from evalmode.evaluation.result import Evaluation
from evalmode.evaluation.samples import Samples
from evalmode.evaluation.symmetric import symmetric_paired
from evalmode.measure.catalog import plain_name
from evalmode.measure.metric import Aggregate, Metric

__all__ = ["Comparison", "compare"]

_SHOWN = 8  # ids in the terminal; `flipped` has all


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found. `print(comparison)` shows it; `comparison["accuracy"]` is one effect.

    `labels` are the models, the first of which the others are compared with; `effects` has an entry for each of them
    and each metric. `flipped` are the samples whose decisions differ, in full.
    """

    labels: tuple[str, ...]
    samples: int
    effects: tuple[Effect, ...]
    confidence: float = 0.95
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """No model is worse than the first one: significantly, and by as much as a margin, where one was given."""
        return not self.worse

    @property
    def worse(self) -> tuple[Effect, ...]:
        """Where a model is significantly worse than the first one, and not shown to be so by less than the margin."""
        return tuple(
            effect for effect in self.effects if effect.outcome is Outcome.WORSE and effect.non_inferior is not True
        )

    @property
    def flipped(self) -> tuple[Flipped, ...]:
        """The samples whose decisions differ, for each metric of decisions and each model."""
        return tuple(effect.flipped for effect in self.effects if effect.flipped is not None)

    def __getitem__(self, key: str | tuple[str, str]) -> Effect:
        """The effect on a metric; of several models `comparison["accuracy", "label"]` names one.

        Raises:
            KeyError: there is none, or several and no label.
        """
        metric, label = (key, None) if isinstance(key, str) else key
        found = [effect for effect in self.effects if effect.metric == metric and label in {None, effect.second}]
        if len(found) != 1:
            there = ", ".join(f"[{effect.metric!r}, {effect.second!r}]" for effect in self.effects)
            raise KeyError(f"{key!r} names {len(found)} effects; there are {there}")
        return found[0]

    def to_json(self) -> bytes:
        """Everything, flipped samples in full, as indented JSON."""
        content = {
            "ok": self.ok,
            "models": self.labels,
            "samples": self.samples,
            "confidence": self.confidence,
            "effects": [plain(effect) for effect in self.effects],
            "notes": self.notes,
        }
        return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"

    def __str__(self) -> str:
        from evalmode.terminal.comparison import EffectLine, FlipLine, comparison_text  # needs rich

        place = {label: number for number, label in enumerate(self.labels)}
        lines, flips = [], []
        for effect in self.effects:
            models = place[effect.first], place[effect.second]
            line = EffectLine(
                metric=effect.metric,
                models=models,
                values=(effect.first_value, effect.second_value),
                effect=effect.effect,
                low=effect.low,
                high=effect.high,
                p_value=effect.adjusted,
                verdict=str(effect.outcome),
                method=effect.method,
                proportion=effect.proportion,
                margin=effect.margin,
                equivalent=effect.equivalent,
                equivalence_p=effect.equivalence_p,
                non_inferior=effect.non_inferior,
                non_inferiority_p=effect.non_inferiority_p,
            )
            lines.append(line)
            if effect.flipped is not None:
                gained, lost, better = effect.flipped.gained, effect.flipped.lost, effect.higher_is_better
                shown = [tuple(map(str, ids[:_SHOWN].tolist())) for ids in (gained, lost)]
                flips.append(FlipLine(effect.metric, models, len(gained), len(lost), shown[0], shown[1], better))
        return comparison_text(self.labels, self.samples, lines, flips, confidence=self.confidence, notes=self.notes)


def compare(
    a: Any,
    b: Any,
    *more: Any,
    metric: str | Metric | Sequence[str | Metric] | None = None,
    margin: float | Mapping[str, float] | None = None,
    data: object = None,
    confidence: float = 0.95,
    groups: str | NDArray[Any] | None = None,
    higher_is_better: bool | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> Comparison:
    """`b`, and each of `more`, beside `a` on the same samples: differences with intervals, tests, and what flipped.

    Samples are matched by their ids, so that only pairs are compared. Decisions get McNemar's exact test (models that
    never disagree are a valid answer: p is 1), other figures the paired bootstrap. With several models or metrics
    p-values are adjusted after Holm. What is significantly worse than `a` makes `ok` False, unless it is shown to be
    worse by less than the margin.

    Parameters:
        a, b, more: evaluations, Parquet files of kept predictions, or models (modules, predictors, tasks, artifacts),
            which are evaluated on `data` first.
        metric: a name, a `Metric`, or several; by default every metric that all of them have kept. Models are evaluated
            with it first.
        margin: the largest difference that does not matter, in the units of the metric (0.01 is one point of
            accuracy), for all or by name: adds equivalence and non-inferiority.
        data: test data, or a `Task` with its data, split and metrics.
        groups: a kept column, or the values, of what samples belong to, as the patient of an image: whole groups are
            resampled.
        higher_is_better: for metrics of your own that do not say it; one that is named and says otherwise is refused.
        names: labels to show the models by.
        options: those of `evaluate`, for what is evaluated first.

    Raises:
        ComparisonError: the results hold other samples, targets or metrics, or no value for each sample.
        UsageError: an argument is wrong.

    Example:
        >>> import torch
        >>> data = torch.eye(3).repeat(8, 1), torch.arange(24) % 3
        >>> good, bad = torch.nn.Identity(), torch.nn.Linear(3, 3)
        >>> _ = torch.nn.init.zeros_(bad.weight), torch.nn.init.zeros_(bad.bias)
        >>> found = compare(good, bad, data=data, metric="accuracy", progress=False)
        >>> found["accuracy"].outcome.value, len(found.flipped[0].lost), found.ok
        ('worse', 16, False)
    """
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence!r}", expected="a number between 0 and 1", fix="confidence=0.95")
    wanted = _listed(metric)
    shares = known_proportions((a, b, *more), data, [*(wanted or ()), *_named(margin)])
    refuse_whole(_by_shared_name(margin, shares), shares)
    results = contestants((a, b, *more), data, names, options, wanted or (), groups)
    metrics, given = _metrics(results, wanted, higher_is_better)
    samples, labels, reference = matched(results), tuple(results), next(iter(results.values()))
    margins, clusters = _margins(margin, metrics, reference), _clusters(groups, samples[0])
    effects = [
        _effect(
            _metric(name, reference, results[label], label, higher_is_better, given.get(name)),
            (labels[0], label),
            (samples[0], other),
            confidence,
            margins.get(name),
            clusters,
        )
        for label, other in zip(labels[1:], samples[1:], strict=True)
        for name in metrics
    ]
    return Comparison(labels, len(samples[0]), adjusted(effects, 1 - confidence), confidence, _notes(results))


def _effect(
    metric: Metric,
    labels: tuple[str, str],
    samples: tuple[Samples, Samples],
    confidence: float,
    margin: float | None,
    clusters: NDArray[Any] | None,
) -> Effect:
    rows = samples[0].rows[metric.name], samples[1].rows[metric.name]
    if rows[0].shape != rows[1].shape:
        raise ComparisonError(
            f"{metric.name} has kept rows of shape {rows[0].shape} for {labels[0]} and {rows[1].shape} for {labels[1]}",
            expected="the same metric in both",
            fix="evaluate both with the same metrics=",
        )
    found = symmetric_paired(metric, *rows, confidence=confidence, margin=margin, clusters=clusters)
    proportion = metric.aggregate is Aggregate.PROPORTION
    return Effect(
        metric=metric.name,
        first=labels[0],
        second=labels[1],
        first_value=metric.figure(rows[0]),
        second_value=metric.figure(rows[1]),
        effect=found.effect,
        low=found.low,
        high=found.high,
        confidence=confidence,
        p_value=found.p_value,
        adjusted=found.p_value,
        outcome=Outcome.UNTESTED,
        method=found.method,
        test=found.test,
        higher_is_better=metric.higher_is_better,
        proportion=proportion,
        margin=margin,
        equivalence_p=found.equivalence_p,
        non_inferiority_p=found.non_inferiority_p,
        flipped=flipped_by(metric.name, labels, samples[0].ids, rows) if proportion else None,
    )


def _metric(
    name: str, first: Evaluation, second: Evaluation, label: str, higher_is_better: bool | None, given: Metric | None
) -> Metric:
    """The metric by which the rows of both results are read: the one that was given, where one was."""
    metric, other = first.metrics[name], second.metrics[name]
    if metric.aggregate is not other.aggregate:
        raise ComparisonError(
            f"{name} is a {metric.aggregate} in one result and a {other.aggregate} in {label}",
            expected="the same metric in both",
            fix="evaluate both with the same metrics=",
        )
    known = metric.higher_is_better if metric.higher_is_better is not None else other.higher_is_better
    if given is not None:
        if given.aggregate is not metric.aggregate or None is not known is not given.higher_is_better is not None:
            raise ComparisonError(
                f"the metric {name!r} that was given is {_kind(given.aggregate, given.higher_is_better)}; the results "
                f"have kept {_kind(metric.aggregate, known)}",
                expected="the metric that they were evaluated with",
                fix=f"metric={name!r} compares what was kept",
            )
        metric, known = given, known if given.higher_is_better is None else given.higher_is_better
    return replace(metric, name=name, higher_is_better=higher_is_better if known is None else known)


def _kind(aggregate: Aggregate, higher_is_better: bool | None) -> str:
    better = {None: "", True: ", higher is better", False: ", lower is better"}[higher_is_better]
    return f"a {aggregate}{better}"


def _metrics(
    results: Mapping[str, Evaluation], wanted: list[str | Metric] | None, higher_is_better: bool | None
) -> tuple[tuple[str, ...], dict[str, Metric]]:
    """The names of what is compared, and the metrics that were given as such."""
    if wanted is None:
        return shared_metrics(results, None), {}
    names = shared_metrics(results, [one if isinstance(one, str) else one.name for one in wanted])
    if higher_is_better is not None:
        _refuse_other_direction(names, results, higher_is_better)
    return names, {one.name: one for one in wanted if isinstance(one, Metric)}


def _refuse_other_direction(metrics: Sequence[str], results: Mapping[str, Evaluation], higher_is_better: bool) -> None:
    for name in metrics:
        for result in results.values():
            known = result.metrics[name].higher_is_better
            if known is not None and known is not higher_is_better:
                other = "higher" if known else "lower"
                raise UsageError(
                    f"higher_is_better={higher_is_better} for {name}, of which {other} is better",
                    expected="higher_is_better= for a metric that does not say it",
                    fix="leave higher_is_better out",
                )


def _listed(metric: str | Metric | Sequence[str | Metric] | None) -> list[str | Metric] | None:
    if metric is None:
        return None
    listed = [metric] if isinstance(metric, str | Metric) else list(metric)
    for one in listed:
        if not isinstance(one, str | Metric):
            raise UsageError(f"metric is {one!r}", expected="the name of a metric, or several")
    return listed


def _named(margin: float | Mapping[str, float] | None) -> list[str]:
    return [name for name in margin if isinstance(name, str)] if isinstance(margin, Mapping) else []


def _margins(
    margin: float | Mapping[str, float] | None, metrics: tuple[str, ...], reference: Evaluation
) -> dict[str, float]:
    shares = [name for name in metrics if reference.metrics[name].aggregate is Aggregate.PROPORTION]
    return margin_of(_by_shared_name(margin, metrics), metrics, shares)


def _by_shared_name(
    margin: float | Mapping[str, float] | None, metrics: Sequence[str]
) -> float | Mapping[str, float] | None:
    """The margins under the names that the results use: `log_loss` is `log loss`, `R2` is `R²`."""
    if not isinstance(margin, Mapping):
        return margin
    known = {plain_name(name): name for name in metrics}
    return {known.get(plain_name(str(name)), name): value for name, value in margin.items()}


def _clusters(groups: str | NDArray[Any] | None, samples: Samples) -> NDArray[Any] | None:
    if groups is None:
        return None
    if isinstance(groups, str):
        if groups not in samples.columns:
            raise ComparisonError(
                f"no column {groups!r} was kept",
                expected=f"one of {', '.join(map(repr, samples.columns)) or 'none'}",
                fix=f"evaluate with slices=[{groups!r}], which keeps it; or give an array in the order of the first",
            )
        groups = samples.columns[groups]
    values = np.asarray(groups)
    if values.shape != (len(samples),):
        raise UsageError(f"groups has shape {values.shape}", expected=f"one group per sample, shape ({len(samples)},)")
    return each_apart(values)[0]


def _notes(results: Mapping[str, Evaluation]) -> tuple[str, ...]:
    """What a reader of the comparison should know about the results."""
    notes = []
    if without := [label for label, result in results.items() if result.samples.target is None]:
        notes.append(f"no targets were kept of {', '.join(without)}: the samples were matched by their ids alone")
    for label, result in results.items():
        if not result.record.exact:
            notes.append(f"the figures of {label} may depend on how its data was cut into batches")
        if result.record.skipped:
            notes.append(f"{label} has skipped {result.record.skipped} bad samples")
    return tuple(notes)
