"""How an evaluation looks in a terminal: its figures with their intervals, slices, and what is to be known."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from evalmode.certificate import EvaluationRecord, MetricRecord
from evalmode.terminal.layout import Look, displayable, duration, ends, entry, look, padded, plural, render

__all__ = ["evaluation_lines", "evaluation_text", "metric_texts", "slice_heading"]

_SLICES = 12  # shown; the record has all


def evaluation_text(
    record: EvaluationRecord,
    *,
    inferred: Sequence[str] = (),
    subject: str = "",
    next_steps: Sequence[tuple[str, str]] = (),
    width: int | None = None,
    color: bool | None = None,
) -> str:
    """A whole evaluation: figures, slices worst first, what was inferred, what ran.

    Example:
        >>> from evalmode.certificate import MetricRecord
        >>> right = MetricRecord(name="accuracy", value=0.75, low=0.194, high=0.994, count=3, total=4)
        >>> print(evaluation_text(EvaluationRecord(samples=4, batch_size=4, metrics=(right,)), width=70, color=False))
        Test set, 4 samples                   95 % interval
            accuracy             75.0 %       19.4 to 99.4    3 of 4
        <BLANKLINE>
        plain eval(), 4 samples at a time                0.0 s
    """
    shape = look(width=width, color=color)
    lines = evaluation_lines(record, shape)
    if record.slices:
        lines += [Text(), *_slice_lines(record, shape)]
    for heading, texts in (("Inferred", inferred), ("Notes", record.notes)):
        if texts:
            lines += [Text(), *entry(Text(heading, style="bold"), 10, "; ".join(texts), shape)]
    sizes = record.execution_sizes or (record.batch_size,)
    count = f"{', '.join(map(str, sizes))} sample{'' if sizes == (1,) else 's'} at a time"
    ran = record.plan or f"plain eval(), {count}"
    name = f"{displayable(subject, unicode=shape.unicode)}: {ran}" if subject else ran
    lines += [Text(), *ends(Text(name), Text(duration(record.seconds), style="dim"), shape)]
    for label, text in next_steps:
        lines += entry(Text(f"  {label}", style="dim"), 15, text, shape)
    return render(lines, shape)


def slice_heading(record: EvaluationRecord) -> str:
    """The name of the first metric of an evaluation that any of its slices has."""
    known = {metric.name for part in record.slices for metric in part.metrics}
    return next((metric.name for metric in record.metrics if metric.name in known), "")


def _slice_lines(record: EvaluationRecord, shape: Look) -> list[Text]:
    slices, first = record.slices, slice_heading(record)
    lines = [Text.assemble((f"Slices by {first}, worst first", "bold"))]
    names = [
        displayable(f"{part.by} {part.name}" if part.name != part.by else part.name, unicode=shape.unicode)
        for part in slices
    ]
    width = min(max((cell_len(name) for name in names[:_SLICES]), default=0), max(shape.width - 50, 12))
    for name, part in list(zip(names, slices, strict=True))[:_SLICES]:
        figure = next((metric for metric in part.metrics if metric.name == first), None)
        value, between = metric_texts(figure) if figure is not None else ("-", "")
        tail = [between.ljust(14), plural(part.samples, "sample", "samples")]
        if part.p_value is not None:
            tail.append(f"p {part.p_value:.2g}" if part.p_value >= 1e-4 else "p < 0.0001")
        elif part.note:
            tail.append(part.note)
        prefix = Text(f"    {padded(name, width)} {value:>8}")
        lines += entry(prefix, max(width + 16, 28), tail, shape)
    if len(slices) > _SLICES:
        lines += entry(Text("   "), 4, f"and {len(slices) - _SLICES} more", shape, style="dim")
    return lines


def _left_out(record: EvaluationRecord) -> str:
    shown = "; ".join(f"{bad.id}: {bad.reason}" for bad in record.bad[:3])
    more = ", ..." if record.skipped > 3 else ""
    return f"{plural(record.skipped, 'sample', 'samples')} left out: {shown}{more}"


def evaluation_lines(record: EvaluationRecord, shape: Look) -> list[Text]:
    """The test set: every figure with its interval, then what was left out."""
    confidences = {metric.confidence for metric in record.metrics if metric.low is not None}
    common = confidences.pop() if len(confidences) == 1 else None
    heading = f"Test set, {plural(record.samples, 'sample', 'samples')}"
    interval = f"{100 * common:g} % interval" if common is not None else ""
    two_columns = shape.width >= 52
    longest = max((cell_len(metric.name) for metric in record.metrics), default=0)
    name_width = min(max(longest, 18), shape.width - 40)
    column = max(38, name_width + 16)
    line = Text(heading, style="bold")
    if two_columns and interval:
        line.append(" " * max(column - cell_len(heading), 2) + interval, style="not bold dim")
    lines = [line]
    for metric in record.metrics:
        value, between = metric_texts(metric)
        if between and (common is None or not two_columns):
            between = f"{between} ({100 * metric.confidence:g} %)"
        count = f"{metric.count:,} of {metric.total:,}" if metric.count is not None else ""
        name = displayable(metric.name, unicode=shape.unicode)
        prefix = Text(f"    {padded(name, name_width)} {value:>8}" if two_columns else f"  {name}: {value}")
        tail = [between.ljust(14) if count else between, count] if between else [count, metric.method]
        lines += entry(prefix, max(column, cell_len(prefix.plain) + 2) if two_columns else shape.width, tail, shape)
    if record.skipped:
        lines += entry(Text("   "), 4, _left_out(record), shape, style="yellow")
    if not record.exact:
        lines += entry(Text("   "), 4, "not exact: figures may depend on how batches were made", shape, style="yellow")
    if record.same_answers is not None:
        same = f"plain and optimised give the same answer on {record.same_answers:,} of {record.samples:,}"
        lines += entry(Text("   "), 4, same, shape)
    return lines


def metric_texts(metric: MetricRecord) -> tuple[str, str]:
    """The value and its interval, both with as many decimals as the interval's width makes meaningful."""
    scale, unit = (100.0, " %") if metric.count is not None else (1.0, "")
    if metric.low is None or metric.high is None:
        value = metric.value * scale
        return (f"{value:.1f} %" if unit else f"{value:.4g}"), ""
    spread = (metric.high - metric.low) * scale
    decimals = 1 if unit else 3
    if math.isfinite(spread) and spread > 0:
        decimals = max(-math.floor(math.log10(spread)), 1) if unit else max(1 - math.floor(math.log10(spread)), 0)
    if decimals > 8:
        return f"{metric.value * scale:.4g}{unit}", f"{metric.low * scale:.4g} to {metric.high * scale:.4g}"
    shown = [f"{number * scale:,.{decimals}f}" for number in (metric.value, metric.low, metric.high)]
    return f"{shown[0]}{unit}", f"{shown[1]} to {shown[2]}"
