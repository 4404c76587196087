"""The contract as the page shows it: the verdict, then each clause with its evidence and what was found."""

from __future__ import annotations

from dataclasses import dataclass

from evalmode.certificate import Certificate, ClauseResult, through_text
from evalmode.clause import CLAUSES, Verdict
from evalmode.finding import Finding, Severity
from evalmode.report.wording import joined, several
from evalmode.terminal.results import short_path

__all__ = ["MARKS", "ClauseRow", "FoundRow", "Headline", "clause_rows", "headline", "stray_findings"]

MARKS = {
    Verdict.KEPT: "✓",
    Verdict.BROKEN: "✗",
    Verdict.ALLOWED: "~",
    Verdict.UNDECIDED: "?",
    Verdict.NOT_TESTED: "–",
}
_MOST = 25  # findings of one clause; the certificate holds all of them
_WEIGHTS = list(Severity)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRow:
    """One finding: `kind` is its severity, `where` its module and `line` its place in the code."""

    code: str
    kind: str
    summary: str
    where: str
    line: str
    source: str
    seen: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClauseRow:
    """One clause; `style` is its verdict as the name of a style, `more` says how many findings are not shown."""

    name: str
    promise: str
    verdict: str
    style: str
    mark: str
    evidence: str
    probes: str
    notes: tuple[str, ...]
    found: tuple[FoundRow, ...]
    more: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The verdict in one word, and in one sentence; `broken` are the findings that broke it, the first ones."""

    word: str
    style: str
    mark: str
    sentence: str
    broken: tuple[FoundRow, ...]


def headline(certificate: Certificate) -> Headline:
    """The verdict on the whole model, in the words of the terminal's closing line."""
    counts = certificate.counts()
    tested = len(certificate.clauses) - counts[Verdict.NOT_TESTED]
    verdict = certificate.verdict
    probes = several(sum(result.probes for result in certificate.clauses), "probe")
    kept = several(tested, "clause")
    parts = [f"{counts[Verdict.KEPT]} of {kept} kept on {probes}" if tested else "no clause was tested"]
    parts += [f"{counts[Verdict.BROKEN]} broken"] if counts[Verdict.BROKEN] else []
    parts += [f"{counts[other]} {other}" for other in (Verdict.ALLOWED, Verdict.UNDECIDED) if counts[other]]
    parts += [f"{counts[Verdict.NOT_TESTED]} not tested"] if tested else []
    errors = [finding for finding in certificate.findings if finding.severity is Severity.ERROR]
    return Headline(
        word=str(verdict),
        style=_style(verdict),
        mark=MARKS[verdict],
        sentence=joined(parts),
        broken=tuple(_found(finding) for finding in errors[:3]),
    )


def clause_rows(certificate: Certificate) -> tuple[ClauseRow, ...]:
    """Every clause in the order of the contract."""
    return tuple(_clause(result, certificate.findings) for result in certificate.clauses)


def stray_findings(certificate: Certificate) -> tuple[FoundRow, ...]:
    """Findings of clauses that the certificate has no result of."""
    told = {result.clause for result in certificate.clauses}
    return tuple(_found(finding) for finding in certificate.findings if finding.clause not in told)[:_MOST]


def _clause(result: ClauseResult, findings: tuple[Finding, ...]) -> ClauseRow:
    own = sorted(
        (finding for finding in findings if finding.clause == result.clause),
        key=lambda finding: _WEIGHTS.index(finding.severity),
    )
    known = CLAUSES.get(result.clause)
    through = [through_text(code, path) for code, path in result.through]
    evidence = result.evidence or joined(through) or (own[0].summary if own else "")
    return ClauseRow(
        name=result.clause,
        promise=known.promise if known else "",
        verdict=str(result.verdict),
        style=_style(result.verdict),
        mark=MARKS[result.verdict],
        evidence=evidence,
        probes=several(result.probes, "probe") if result.probes else "",
        notes=result.notes[:_MOST],
        found=tuple(_found(finding) for finding in own[:_MOST]),
        more=several(len(own) - _MOST, "further finding") if len(own) > _MOST else "",
    )


def _found(finding: Finding) -> FoundRow:
    place = finding.place
    file = f"{short_path(place.file)}:{place.line}" if place.file and place.line else short_path(place.file)
    return FoundRow(
        code=finding.code,
        kind=str(finding.severity),
        summary=finding.summary,
        where=place.module or "the model itself",
        line=file if place.file else "",
        source=place.source.strip(),
        seen=finding.seen,
        fix=finding.fix,
    )


def _style(verdict: Verdict) -> str:
    return str(verdict).replace(" ", "-")
