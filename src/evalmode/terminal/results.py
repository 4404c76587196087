"""How a certificate looks in a terminal: the short form of `check` and the whole form of `certify`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.text import Text

from evalmode.certificate import Certificate, ClauseResult, EvaluationRecord, MetricRecord
from evalmode.clause import CLAUSES, Verdict
from evalmode.finding import Finding, Place, Severity
from evalmode.terminal.layout import Look, displayable, duration, ends, entry, look, plural, render
from evalmode.terminal.plans import plan_lines

__all__ = ["certificate_text", "check_text", "metric_texts", "short_path"]

_MARKS = {
    Verdict.KEPT: ("✓", "ok", "green"),
    Verdict.BROKEN: ("✗", "x", "bold red"),
    Verdict.ALLOWED: ("~", "~", "yellow"),
    Verdict.UNDECIDED: ("?", "?", "yellow"),
    Verdict.NOT_TESTED: ("-", "-", "dim"),
}
_IGNORED = "ignored: "  # how a clause says which of its findings were left out of the verdict, and by whom
_VERDICTS = {Severity.ERROR: Verdict.BROKEN, Severity.ALLOWED: Verdict.ALLOWED}


def check_text(certificate: Certificate, *, width: int | None = None, color: bool | None = None) -> str:
    """What `check` found: the broken clauses with place and fix, then what is allowed, open or ignored, then the count.

    Example:
        >>> from evalmode.certificate import Certificate, Environment, ModelRecord
        >>> model = ModelRecord(name="Net", modules=1, parameters=2, bytes=8, fingerprint="")
        >>> machine = Environment(
        ...     evalmode="", python="", torch="", device="", processor="", cores=1, threads=1, platform=""
        ... )
        >>> nothing = Certificate(created="", subject="Net", model=model, environment=machine)
        >>> print(check_text(nothing, width=60, color=False))
        0 kept, 0 broken, 0 not tested         0 forward passes, 0.0 s
    """
    shape = look(width=width, color=color)
    broken = [finding for finding in certificate.findings if finding.severity is Severity.ERROR]
    others = [finding for finding in certificate.findings if finding.severity in {Severity.ALLOWED, Severity.NOTE}]
    lines: list[Text] = []
    module_width = _module_width([*broken, *others])
    for finding in [*broken, *others]:
        lines += _finding_lines(finding, shape, module_width)
    told = {(finding.clause, _VERDICTS.get(finding.severity)) for finding in [*broken, *others]}
    ignored: list[str] = []
    everything = not broken and certificate.ok
    for result in certificate.clauses:
        if result.verdict is Verdict.ALLOWED and result.evidence.startswith(_IGNORED):
            ignored += [result.evidence, *_ignored_notes(result)]
        elif (result.clause, result.verdict) in told or not (everything or result.verdict is not Verdict.KEPT):
            ignored += _ignored_notes(result)
        else:
            lines += _clause_lines(result, shape, indent=0)
    for sentence in ignored:
        lines += entry(Text(), 0, sentence, shape, style="yellow")
    passes = f"{plural(certificate.forward_passes, 'forward pass', 'forward passes')}, {duration(certificate.seconds)}"
    lines += ends(Text(_count_text(certificate)), Text(passes, style="dim"), shape)
    return render(lines, shape)


def certificate_text(
    certificate: Certificate,
    *,
    next_steps: Sequence[tuple[str, str]] = (),
    width: int | None = None,
    color: bool | None = None,
) -> str:
    """A whole certificate: the contract clause by clause, the test set, what was inferred, and the closing block.

    `next_steps` are (label, text) lines under the closing line, such as ("certificate", "build/certificate.json").
    """
    shape = look(width=width, color=color)
    lines = [Text("Contract", style="bold")]
    module_width = _module_width(certificate.findings)
    for result in certificate.clauses:
        found = [
            finding
            for finding in certificate.findings
            if finding.clause == result.clause and finding.severity is not Severity.IGNORED
        ]
        errors = [finding for finding in found if finding.severity is Severity.ERROR]
        lines += _clause_lines(result, shape, indent=2, headline=errors[0].summary if errors else "")
        for finding in found:
            summary = not errors or finding is not errors[0]  # the first error is the headline of its clause
            lines += _detail_lines(finding, shape, indent=6, module_width=module_width, summary=summary)
    if certificate.optimization is not None:
        lines += [Text(), *plan_lines(certificate.optimization, shape)]
    if certificate.evaluation is not None:
        lines += [Text(), *_evaluation_lines(certificate.evaluation, shape)]
    if certificate.inferred:
        lines += [Text(), *entry(Text("Inferred", style="bold"), 10, "; ".join(certificate.inferred), shape)]
    lines += [Text(), *_closing_lines(certificate, shape)]
    for label, text in next_steps:
        lines += entry(Text(f"  {label}", style="dim"), 15, text, shape)
    return render(lines, shape)


def _ignored_notes(result: ClauseResult) -> list[str]:
    return [note for note in result.notes if note.startswith(_IGNORED)]


def _count_text(certificate: Certificate) -> str:
    counts = certificate.counts()
    shown = [
        f"{counts[verdict]} {verdict}"
        for verdict in (Verdict.KEPT, Verdict.BROKEN, Verdict.ALLOWED, Verdict.UNDECIDED, Verdict.NOT_TESTED)
        if counts[verdict] or verdict not in {Verdict.ALLOWED, Verdict.UNDECIDED}
    ]
    return ", ".join(shown)


def _mark(verdict: Verdict, shape: Look) -> tuple[str, str]:
    pretty, plain, style = _MARKS[verdict]
    return (pretty if shape.unicode else f"{plain:2}"), style


def _headline(verdict: Verdict, name: str, body: str, shape: Look, indent: int) -> list[Text]:
    mark, style = _mark(verdict, shape)
    prefix = Text.assemble(" " * indent, (mark, style), " ", (name, "bold"))
    name_width = max(map(len, CLAUSES)) + 2 + (indent > 0)
    return entry(prefix, indent + len(mark) + 1 + name_width, body, shape)


def _clause_lines(result: ClauseResult, shape: Look, *, indent: int, headline: str = "") -> list[Text]:
    body = headline or result.evidence
    if result.verdict not in {Verdict.KEPT, Verdict.BROKEN} and not body.startswith(_IGNORED):
        body = f"{result.verdict}: {body}" if body else str(result.verdict)
    lines = _headline(result.verdict, result.clause, body or _probes(result), shape, indent)
    column = indent + len(_mark(result.verdict, shape)[0]) + 1
    for note in result.notes:
        label, separator, text = note.partition(": ")
        if not separator or not re.fullmatch(r"[a-z-]{2,18}", label):
            label, text = "", note
        prefix = Text(" " * column + label, style="dim") if label else Text(" " * column)
        lines += entry(prefix, column + max(map(len, CLAUSES)) + 2 + (indent > 0), text, shape, style="dim")
    return lines


def _probes(result: ClauseResult) -> str:
    return plural(result.probes, "probe", "probes")


def _finding_lines(finding: Finding, shape: Look, module_width: int) -> list[Text]:
    verdict = _VERDICTS.get(finding.severity)
    if verdict is None:
        lines = entry(Text("note", style="dim"), 6, f"{finding.clause}: {finding.summary}", shape)
    else:
        lines = _headline(verdict, finding.clause, finding.summary, shape, 0)
    return lines + _detail_lines(finding, shape, indent=4, module_width=module_width)


def _detail_lines(
    finding: Finding, shape: Look, *, indent: int, module_width: int, summary: bool = False
) -> list[Text]:
    details: list[tuple[str, Sequence[str]]] = [("where", _place_parts(finding.place, module_width))]
    if summary:
        label = "what" if finding.severity is Severity.ERROR else str(finding.severity)
        details.insert(0, (label, [finding.summary]))
    if finding.seen:
        details.append(("seen", [finding.seen]))
    explain = f"evalmode explain {finding.code}"
    if finding.fix:
        details.append(("fix", [finding.fix, f"# {explain}"]))
    else:
        details.append(("more", [explain]))
    lines: list[Text] = []
    for label, parts in details:
        lines += entry(Text(" " * indent + label, style="dim"), indent + 7, parts, shape)
    return lines


def _place_parts(place: Place, module_width: int) -> list[str]:
    module = place.module or "(the model itself)"
    where = f"{short_path(place.file)}:{place.line}" if place.file else ""
    return [module.ljust(module_width) if where or place.source else module, where, place.source.strip(" \t\n")]


def _module_width(findings: Sequence[Finding]) -> int:
    return max((len(finding.place.module) for finding in findings if len(finding.place.module) <= 24), default=0)


def short_path(file: str) -> str:
    """A path as one would type it here: relative below the current folder, from ~ below home, else as it is."""
    path = Path(file)
    for base, shown in ((Path.cwd(), Path()), (Path.home(), Path("~"))):
        if path.is_absolute() and path.is_relative_to(base):
            return str(shown / path.relative_to(base))
    return file


def _evaluation_lines(record: EvaluationRecord, shape: Look) -> list[Text]:
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
        prefix = Text(f"    {name:<{name_width}} {value:>8}" if two_columns else f"  {name}: {value}")
        tail = [between.ljust(14) if count else between, count] if between else [count, metric.method]
        lines += entry(prefix, max(column, cell_len(prefix.plain) + 2) if two_columns else shape.width, tail, shape)
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


def _closing_lines(certificate: Certificate, shape: Look) -> list[Text]:
    counts = certificate.counts()
    tested = len(certificate.clauses) - counts[Verdict.NOT_TESTED]
    probes = plural(sum(result.probes for result in certificate.clauses), "probe", "probes")
    verdict = Verdict.KEPT if certificate.ok else Verdict.BROKEN
    if not tested:
        verdict = Verdict.NOT_TESTED
    word = Text(str(verdict).upper(), style=_MARKS[verdict][2])
    sentence = f"  {counts[verdict]} of {tested} clauses on {probes}" if tested else ""
    rest = "".join(
        f", {counts[other]} {other}"
        for other in (Verdict.ALLOWED, Verdict.UNDECIDED, Verdict.NOT_TESTED)
        if counts[other] or other is Verdict.NOT_TESTED
    )
    line = Text.assemble(word, sentence + rest)
    return ends(line, Text(duration(certificate.seconds), style="dim"), shape)
