"""A model card in Markdown: what was tested of a model, how it runs, and what the test data gave, as tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from evalmode.certificate import (
    Certificate,
    Environment,
    EvaluationRecord,
    MetricRecord,
    ModelRecord,
    OptimizationRecord,
)
from evalmode.clause import Verdict
from evalmode.errors import UsageError
from evalmode.finding import Severity
from evalmode.terminal.evaluations import metric_texts, slice_heading
from evalmode.terminal.layout import displayable, plural
from evalmode.terminal.plans import byte_size, plan_cell

__all__ = ["HONEST", "Evaluated", "card_text", "markdown_text"]

HONEST = (
    "This card says what was tested, on which inputs and on which machine: it is evidence, not a proof, and it says "
    "nothing about other data."
)
_SLICES = 12  # in the table; the rest is counted
_SPECIAL = re.compile(r"[\\|*`\[\]<>~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
_BLOCK = re.compile(r"^([#>+-]|\d+[.)])")  # what opens a heading, quotation or list


class Evaluated(Protocol):
    """What a card shows of an evaluation."""

    @property
    def record(self) -> EvaluationRecord: ...
    @property
    def model(self) -> ModelRecord | None: ...
    @property
    def environment(self) -> Environment | None: ...
    @property
    def subject(self) -> str: ...


def card_text(certificate: Certificate | None, evaluations: Sequence[Evaluated] = ()) -> str:
    """The card of a certificate, of evaluations, or of both. It ends in a line break.

    Raises:
        UsageError: neither was given, or they are of models with other weights.

    Example:
        >>> from evalmode.certificate import Certificate, Environment, ModelRecord
        >>> model = ModelRecord(name="Net", modules=1, parameters=2, bytes=8, fingerprint="3f2a" * 16)
        >>> machine = Environment(
        ...     evalmode="0.1", python="3", torch="2", device="cpu", processor="", cores=2, threads=2, platform="Linux"
        ... )
        >>> certificate = Certificate(
        ...     created="2026-01-01T00:00:00Z", subject="net.py", model=model, environment=machine
        ... )
        >>> print(card_text(certificate).splitlines()[0])
        ## net.py
    """
    subjects = [*([] if certificate is None else [certificate.subject]), *(part.subject for part in evaluations)]
    if not subjects:
        raise UsageError("there is nothing to make a card of", expected="a certificate or an evaluation")
    model = _one_model([None if certificate is None else certificate.model, *(part.model for part in evaluations)])
    records = [("", certificate.evaluation)] if certificate is not None and certificate.evaluation is not None else []
    records += [(_named(part, subjects[0]), part.record) for part in evaluations]
    lines = [f"## {markdown_text(next(filter(None, subjects), 'Model'))}", ""]
    lines += _table(("", ""), _overview(certificate, model, [record for _, record in records]))
    if certificate is not None and certificate.clauses:
        lines += ["", "### Contract", "", *_contract(certificate)]
    if certificate is not None and certificate.optimization is not None and certificate.optimization.plans:
        lines += ["", "### Speed and memory", "", *_plans(certificate.optimization)]
    for subject, record in records:
        lines += ["", *_test_set(subject, record)]
    places = [None if certificate is None else certificate.environment, *(part.environment for part in evaluations)]
    known = list(dict.fromkeys(place for place in places if place is not None))
    if known:
        lines += ["", "### Environment", "", *_table(("", ""), _environment(known))]
    return "\n".join([*lines, "", HONEST]) + "\n"


def _named(part: Evaluated, whole: str) -> str:
    """Whose evaluation it is, where that is not said above, and in which file it is."""
    subject = part.subject if part.subject != whole else ""
    return ", ".join(filter(None, (subject, getattr(part, "source", ""))))


def markdown_text(text: str) -> str:
    r"""Text in one line that Markdown shows as it stands, also in a cell of a table.

    Example:
        >>> print(markdown_text("a|b *c* <d>"))
        a\|b \*c\* \<d\>
    """
    plain = " ".join(displayable(text, unicode=True).split())
    return _SPECIAL.sub(lambda found: "\\" + found.group() if found.group() != "&" else "&amp;", plain)


def _item(text: str) -> str:
    """Text as an item of a list; what would open a list or a heading of its own does not."""
    return _BLOCK.sub(lambda found: found.group()[:-1] + "\\" + found.group()[-1], markdown_text(text))


def _one_model(models: Iterable[ModelRecord | None]) -> ModelRecord | None:
    known = [model for model in models if model is not None]
    if len({model.fingerprint for model in known}) > 1:
        names = " and ".join(f"{model.name} {model.fingerprint[:12]}" for model in known[:2])
        raise UsageError(f"the files are of models with other weights: {names}", fix="make a card of each")
    return known[0] if known else None


def _overview(
    certificate: Certificate | None, model: ModelRecord | None, records: Sequence[EvaluationRecord]
) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    if model is not None:
        size = f"{plural(model.parameters, 'parameter', 'parameters')} in {plural(model.modules, 'module', 'modules')}"
        rows.append(("model", f"{markdown_text(model.name)}, {size}, {byte_size(model.bytes)}"))
        rows.append(("weights", markdown_text(model.fingerprint[:16]) or "unknown"))
    rows.append(("contract", "not tested" if certificate is None else _verdict(certificate)))
    if certificate is not None and certificate.inputs:
        rows.append(("tested on", markdown_text(certificate.inputs)))
    if certificate is not None and certificate.optimization is not None and certificate.optimization.plans:
        rows.append(("runs by", _plan(certificate.optimization)))
    for record in records:
        figures = [f"{markdown_text(metric.name)} {metric_texts(metric)[0]}" for metric in record.metrics[:3]]
        rows.append(("test set", ", ".join([plural(record.samples, "sample", "samples"), *figures])))
    if certificate is not None and certificate.created:
        rows.append(("certified", markdown_text(certificate.created)))
    return rows


def _verdict(certificate: Certificate) -> str:
    counts = certificate.counts()
    tested = sum(counts.values()) - counts[Verdict.NOT_TESTED]
    if not tested:
        return "not tested"
    probes = sum(result.probes for result in certificate.clauses)
    told = [f"{counts[Verdict.KEPT]} of {plural(tested, 'tested clause', 'tested clauses')} kept"]
    told += [
        f"{counts[verdict]} {verdict.value}" for verdict in Verdict if verdict is not Verdict.KEPT and counts[verdict]
    ]
    return f"**{certificate.verdict}**: {', '.join(told)}, on {plural(probes, 'probe', 'probes')}"


def _contract(certificate: Certificate) -> list[str]:
    rows = []
    for result in certificate.clauses:
        shown = f"**{result.verdict.value}**" if result.verdict is Verdict.BROKEN else result.verdict.value
        errors = [
            finding.summary
            for finding in certificate.findings
            if finding.clause == result.clause and finding.severity is Severity.ERROR
        ]
        what = "; ".join(dict.fromkeys(errors)) or result.evidence
        rows.append((markdown_text(result.clause), shown, f"{result.probes:,}", markdown_text(what)))
    return _table(("clause", "verdict", "probes", "evidence"), rows, right={2})


def _plan(record: OptimizationRecord) -> str:
    chosen = record.chosen
    faster = "" if chosen.outcome == "plain" else plan_cell(chosen, "over plain")
    stable = "; same bits for a sample in any batch" if record.stable else ""
    return f"{markdown_text(chosen.name)}{f', {faster} as fast as plain eval()' if faster else ''}{stable}"


def _plans(record: OptimizationRecord) -> list[str]:
    shown = [plan for plan in record.plans if plan.outcome == "plain" or plan is record.chosen]
    columns = ("samples/s", "over plain", "error", "peak memory")
    rows = [(markdown_text(plan.name), *(plan_cell(plan, name) for name in columns)) for plan in shown]
    lines = _table(("", *columns), rows, right={1, 2, 3, 4})
    others = [plan.outcome for plan in record.plans if plan not in shown]
    left = sum(outcome in {"not tried", "not installed"} for outcome in others)
    told = f"{plural(len(others) - left, 'other plan was', 'other plans were')} tried" if others else ""
    told += f", {left:,} not" if left else ""
    tolerance = markdown_text(record.tolerance)
    return [*lines, "", f"{told}; tolerance {tolerance}." if told else f"Tolerance {tolerance}."]


def _test_set(subject: str, record: EvaluationRecord) -> list[str]:
    name = f" of {markdown_text(subject)}" if subject else ""
    lines = [f"### Test set{name}, {plural(record.samples, 'sample', 'samples')}", ""]
    if record.metrics:
        lines += _table(("metric", "value", "interval", ""), map(_metric, record.metrics), right={1})
    said = []
    if record.same_answers is not None:
        said.append(f"plain and optimised give the same answer on {record.same_answers:,} of {record.samples:,}")
    if record.skipped:
        said.append(f"{plural(record.skipped, 'sample was', 'samples were')} left out")
    if not record.exact:
        said.append("not exact: figures may depend on how batches were made")
    if record.plan:
        said.append(f"ran by {record.plan}")
    said += record.notes
    if said:
        lines += ["", *(f"- {_item(sentence)}" for sentence in said)]
    if record.slices:
        lines += ["", "#### Slices, worst first", "", *_slices(record)]
    return lines


def _metric(metric: MetricRecord) -> tuple[str, str, str, str]:
    value, between = metric_texts(metric)
    count = f"{metric.count:,} of {metric.total:,}" if metric.count is not None else ""
    level = f"{100 * metric.confidence:g} %"
    how = f"{level}, {metric.method}" if metric.method else level
    interval = f"{between} ({how})" if between else metric.method or "none"
    return markdown_text(metric.name), value, markdown_text(interval), count


def _slices(record: EvaluationRecord) -> list[str]:
    slices, first = record.slices, slice_heading(record) or "figure"
    rows = []
    for part in slices[:_SLICES]:
        figure = next((metric for metric in part.metrics if metric.name == first), None)
        value, between = metric_texts(figure) if figure is not None else ("", "")
        name = part.name if part.name == part.by else f"{part.by} {part.name}"
        chance = "" if part.p_value is None else "< 0.0001" if part.p_value < 1e-4 else f"{part.p_value:.2g}"
        rows.append(
            (
                markdown_text(name),
                f"{part.samples:,}",
                value,
                between,
                chance or markdown_text(part.note) or "not tested",
            )
        )
    heads = ("slice", "samples", markdown_text(first), "interval", "p against the rest (Holm)")
    lines = _table(heads, rows, right={1, 2})
    if len(slices) > _SLICES:
        lines += ["", f"{plural(len(slices) - _SLICES, 'more slice is', 'more slices are')} in the record."]
    return lines


def _environment(places: Sequence[Environment]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for place in places:
        cores = f"{plural(place.cores, 'core', 'cores')}, {plural(place.threads, 'thread', 'threads')}"
        processor = f"{place.processor}, " if place.processor else ""
        rows.append(
            ("software", markdown_text(f"evalmode {place.evalmode}, torch {place.torch}, Python {place.python}"))
        )
        rows.append(
            ("machine", markdown_text(f"{place.device}, {processor}{cores}, {place.platform}".removesuffix(", ")))
        )
    return rows


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """The lines of a table, its columns padded so that the source can be read too."""
    cells = [list(heads), *(list(row) for row in rows)]
    ends = set(right)
    widths = [max(3, *(len(row[place]) for row in cells)) for place in range(len(heads))]
    aligned = [
        [
            text.rjust(width) if place in ends else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    ]
    rule = ["-" * (width - 1) + (":" if place in ends else "-") for place, width in enumerate(widths)]
    return ["| " + " | ".join(row) + " |" for row in (aligned[0], rule, *aligned[1:])]
