"""How a certificate looks in a terminal: the short form of `check` and the whole form of `certify`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from evalmode.certificate import Certificate, ClauseResult
from evalmode.clause import CLAUSES, Verdict
from evalmode.finding import Finding, Place, Severity
from evalmode.terminal.evaluations import evaluation_lines
from evalmode.terminal.layout import Look, duration, ends, entry, look, plural, render
from evalmode.terminal.plans import plan_lines

__all__ = ["certificate_text", "check_text", "short_path"]

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
        lines += [Text(), *evaluation_lines(certificate.evaluation, shape)]
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


def _closing_lines(certificate: Certificate, shape: Look) -> list[Text]:
    counts = certificate.counts()
    tested = len(certificate.clauses) - counts[Verdict.NOT_TESTED]
    probes = plural(sum(result.probes for result in certificate.clauses), "probe", "probes")
    verdict = certificate.verdict
    word = Text(str(verdict).upper(), style=_MARKS[verdict][2])
    sentence = f"  {counts[verdict]} of {plural(tested, 'clause', 'clauses')} on {probes}" if tested else ""
    rest = "".join(
        f", {counts[other]} {other}"
        for other in (Verdict.ALLOWED, Verdict.UNDECIDED, Verdict.NOT_TESTED)
        if other is Verdict.NOT_TESTED or (counts[other] and other is not verdict)
    )
    line = Text.assemble(word, sentence + rest)
    return ends(line, Text(duration(certificate.seconds), style="dim"), shape)
