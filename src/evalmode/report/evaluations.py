"""An evaluation as the page shows it: figures with intervals, slices, calibration, and the samples that went worst."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evalmode.certificate import CalibrationBin, EvaluationRecord, MetricRecord, SampleRecord, SliceRecord
from evalmode.clause import Verdict
from evalmode.report.confusions import Confusions, confusions
from evalmode.report.wording import Figure, figure, finite, joined, number, several, time_taken

__all__ = ["Evaluated", "ImageBudget", "IntervalBar", "SliceRow", "Slices", "WorstSample", "evaluated", "gap_of_bins"]

_FIRST_SLICES, _MOST_SLICES, _SLICE_METRICS = 12, 400, 4
_MOST_SAMPLES = 48
_MOST_BAD = 40
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalBar:
    """A value with its interval on a scale that a whole column shares. Units: per cent of the column's width."""

    value: float
    low: float
    high: float
    reference: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One metric of the whole test set."""

    name: str
    shown: Figure
    method: str
    bar: IntervalBar | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceRow:
    """One slice, with a figure for each of the columns (None where it has none) and a bar for the first of them."""

    by: str
    name: str
    samples: str
    figures: tuple[Figure | None, ...]
    bar: IntervalBar | None
    p_value: str
    unlikely: bool
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Slices:
    """The slices in the order of the record; `rest` are folded away, `more` says how many are left out."""

    metrics: tuple[str, ...]
    first: tuple[SliceRow, ...]
    rest: tuple[SliceRow, ...]
    more: str
    tested: bool
    scale: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstSample:
    """One sample; `image` is the content of a PNG as base64, `missing` says why an image is not shown."""

    id: str
    target: str
    prediction: str
    wrong: bool
    loss: str
    image: str
    missing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One evaluation."""

    title: str
    summary: str
    same: str
    interval: str
    metrics: tuple[MetricRow, ...]
    confusion: Confusions | None
    bins: tuple[CalibrationBin, ...]
    calibration_gap: str
    slices: Slices | None
    worst: tuple[WorstSample, ...]
    bad: tuple[tuple[str, str], ...]
    skipped: str
    exactness: str
    notes: tuple[str, ...]


class ImageBudget:
    """How many characters of images, and rows of slices, a page may still take."""

    def __init__(self, characters: int, slices: int = 0) -> None:
        self.left, self.slices = characters, slices

    def spend(self, characters: int) -> bool:
        """Whether so many are left; they are then taken."""
        if characters > self.left:
            return False
        self.left -= characters
        return True


def evaluated(
    record: EvaluationRecord, budget: ImageBudget, title: str = "", verdicts: Mapping[str, Verdict] | None = None
) -> Evaluated:
    """What the page shows of `record`; `verdicts` are those of the clauses, by name, where they are known."""
    confidences = {metric.confidence for metric in record.metrics if metric.low is not None}
    bins = tuple(item for item in record.calibration if _is_drawn(item))
    gap = gap_of_bins(bins)
    return Evaluated(
        title=title or record.plan or "plain eval()",
        summary=_summary(record),
        same=f"{record.same_answers:,} of {record.samples:,}" if record.same_answers is not None else "",
        interval=f"{100 * min(confidences):g} % interval" if len(confidences) == 1 else "interval",
        metrics=tuple(_metric(metric, told=len(confidences) == 1) for metric in record.metrics),
        confusion=confusions(record.confusion) if record.confusion is not None else None,
        bins=bins,
        calibration_gap=number(gap, ".3f") if gap is not None else "",
        slices=_slices(record.slices, record.metrics, budget) if record.slices else None,
        worst=tuple(_worst(sample, budget) for sample in record.worst[:_MOST_SAMPLES]),
        bad=tuple((bad.id, bad.reason) for bad in record.bad[:_MOST_BAD]),
        skipped=f"{several(record.skipped, 'sample')} left out of the figures" if record.skipped else "",
        exactness=_exactness(record, verdicts or {}),
        notes=record.notes,
    )


def gap_of_bins(bins: Sequence[CalibrationBin]) -> float | None:
    """The expected calibration error over `bins`: the mean distance of accuracy and confidence, weighed by samples.

    Example:
        >>> halves = [CalibrationBin(low=0.5, high=1.0, count=4, confidence=0.9, accuracy=0.5)]
        >>> gap_of_bins(halves)
        0.4

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3.
    """
    total = sum(item.count for item in bins)
    if total <= 0:
        return None
    gaps = (item.count * abs((item.accuracy or 0.0) - (item.confidence or 0.0)) for item in bins)
    return sum(gaps) / total


def _is_drawn(item: CalibrationBin) -> bool:
    return item.count > 0 and finite(item.confidence) is not None and finite(item.accuracy) is not None


def _exactness(record: EvaluationRecord, verdicts: Mapping[str, Verdict]) -> str:
    """What else the figures depend on. A model that draws, or heeds the companions, has no figures of its own."""
    moved = {name: verdict for name, verdict in verdicts.items() if verdict in {Verdict.BROKEN, Verdict.ALLOWED}}
    told = [
        f"One draw: {name} is {moved[name]}, and the same evaluation may give other figures."
        for name in ("no-randomness", "deterministic")
        if name in moved
    ][:1]
    if "batch-independent" in moved:
        told.append(f"The figures may change with the batch: batch-independent is {moved['batch-independent']}.")
    if not record.exact:
        told.append("Not exact: the figures may depend on how the data was loaded.")
    return joined(told, " ") or (
        "Exact: the figures are the same bits for any batch size, number of workers, order or resumption."
    )


def _summary(record: EvaluationRecord) -> str:
    took = time_taken(record.seconds)
    parts = [
        several(record.samples, "sample"),
        f"loaded in batches of {record.batch_size}" if record.batch_size else "",
        f"run {', '.join(map(str, record.execution_sizes))} at a time" if record.execution_sizes else "",
        took and f"{took}, {record.samples / record.seconds:,.0f} samples/s",
        f"data {record.data[:12]}" if record.data else "",
    ]
    return joined(parts, " · ")


def _metric(metric: MetricRecord, *, told: bool) -> MetricRow:
    """One metric; `told` says that the heading of the column names the confidence of all of them."""
    words = figure(metric)
    if words.interval and not told:
        words = replace(words, interval=f"{words.interval} ({100 * metric.confidence:g} %)")
    value, low, high = finite(metric.value), finite(metric.low), finite(metric.high)
    bar = None
    if metric.count is not None and value is not None and low is not None and high is not None:
        bar = _bar(value, low, high, (0.0, 1.0), None)
    return MetricRow(name=metric.name, shown=words, method=metric.method, bar=bar)


def _slices(slices: Sequence[SliceRecord], whole: Sequence[MetricRecord], budget: ImageBudget) -> Slices:
    names = tuple(dict.fromkeys(metric.name for item in slices for metric in item.metrics))[:_SLICE_METRICS]
    most = min(_MOST_SLICES, max(budget.slices, _FIRST_SLICES))
    kept = slices[:most]
    budget.slices -= len(kept)
    whole = [metric for metric in whole if names and metric.name == names[0]]
    first = [metric for item in kept for metric in item.metrics if names and metric.name == names[0]]
    reference = finite(whole[0].value) if whole else None
    scale = _scale(first, reference)
    rows = tuple(_slice(item, names, scale, reference) for item in kept)
    return Slices(
        metrics=names,
        first=rows[:_FIRST_SLICES],
        rest=rows[_FIRST_SLICES:],
        more=f"{several(len(slices) - most, 'further slice')} in the record" if len(slices) > most else "",
        tested=any(item.p_value is not None for item in kept),
        scale=_scale_text(scale, shares=any(metric.count is not None for metric in first)),
    )


def _slice(
    item: SliceRecord, names: tuple[str, ...], scale: tuple[float, float] | None, reference: float | None
) -> SliceRow:
    found = {metric.name: metric for metric in reversed(item.metrics)}
    figures = tuple(figure(found[name]) if name in found else None for name in names)
    first = found.get(names[0]) if names else None
    bar = None
    if first is not None and scale is not None and finite(first.value) is not None:
        low, high = finite(first.low), finite(first.high)
        bar = _bar(
            first.value, first.value if low is None else low, first.value if high is None else high, scale, reference
        )
    p_value = finite(item.p_value)
    return SliceRow(
        by=item.by,
        name=item.name,
        samples=f"{item.samples:,}",
        figures=figures,
        bar=bar,
        p_value="" if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}",
        unlikely=p_value is not None and p_value < 0.05,
        note=item.note,
    )


def _scale(metrics: Sequence[MetricRecord], reference: float | None) -> tuple[float, float] | None:
    """The range that all of a column's values and intervals lie in, and the whole's value; None where none is a
    number."""
    known = [reference, *(finite(value) for metric in metrics for value in (metric.value, metric.low, metric.high))]
    values = [value for value in known if value is not None]
    if not values:
        return None
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _scale_text(scale: tuple[float, float] | None, *, shares: bool) -> str:
    if scale is None:
        return ""
    return f"{100 * scale[0]:.3g} to {100 * scale[1]:.3g} %" if shares else f"{scale[0]:.3g} to {scale[1]:.3g}"


def _bar(value: float, low: float, high: float, scale: tuple[float, float], reference: float | None) -> IntervalBar:
    def at(number: float) -> float:
        share = (number - scale[0]) / (scale[1] - scale[0])
        return round(2 + 96 * min(max(share, 0.0), 1.0), 2)

    return IntervalBar(
        value=at(value), low=at(low), high=at(high), reference=None if reference is None else at(reference)
    )


def _worst(sample: SampleRecord, budget: ImageBudget) -> WorstSample:
    image, missing = "", ""
    if sample.image:
        if not _is_png(sample.image):
            missing = "its image is no PNG"
        elif budget.spend(len(sample.image)):
            image = sample.image
        else:
            missing = "image left out: the page is full"
    return WorstSample(
        id=sample.id,
        target=sample.target,
        prediction=sample.prediction,
        wrong=bool(sample.target) and sample.prediction != sample.target,
        loss=number(sample.loss) if sample.loss is not None else "",
        image=image,
        missing=missing,
    )


def _is_png(text: str) -> bool:
    """Whether `text` is base64, and nothing else, of what begins as a PNG does."""
    try:
        return base64.b64decode(text, validate=True).startswith(_PNG)
    except (binascii.Error, ValueError):
        return False
