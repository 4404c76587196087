"""Which clauses are tested and which codes count: names such as `finite`, `EM171` and `EM17`.

What is ignored is left out of the verdict and said in the certificate, with who ignored it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Self

import msgspec

from evalmode.certificate import Certificate, ClauseResult, through_text
from evalmode.checking.catalog import CLAUSE_FILES, pages
from evalmode.clause import CLAUSES, Verdict
from evalmode.errors import UsageError
from evalmode.finding import Finding, Severity
from evalmode.settings.project_file import Settings

__all__ = ["ClauseSelection", "Wanted", "complete_selection", "read_names", "select_clauses"]

_PREFIX = re.compile(r"EM\d{1,3}")
_UNSELECTED = "not selected"


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """A clause, a code, or the beginning of codes; `origin` is who named it, for messages.

    Example:
        >>> Wanted.read("em17", "--ignore").name
        'EM17'
    """

    name: str
    origin: str

    @classmethod
    def read(cls, text: str, origin: str) -> Self:
        """What `text` names.

        Raises:
            UsageError: it is no clause that `check` tests, no code, and no beginning of one.
        """
        name = text.strip()
        if name.lower() in CLAUSE_FILES:
            return cls(name.lower(), origin)
        codes = sorted(code for known in _codes().values() for code in known)
        if _PREFIX.fullmatch(name.upper()) and any(code.startswith(name.upper()) for code in codes):
            return cls(name.upper(), origin)
        near = difflib.get_close_matches(name.lower(), CLAUSE_FILES, n=1)
        near = near or difflib.get_close_matches(name.upper(), codes, n=1, cutoff=0.7)
        what = "is a clause that check does not test" if name.lower() in CLAUSES else "is no clause or code"
        raise UsageError(
            f"{origin}: {name!r} {what}",
            expected=f"{', '.join(CLAUSE_FILES)}, or a code or its beginning, as in {codes[0]} and {codes[0][:4]}",
            fix=f"did you mean `{near[0]}`?" if near else None,
        )

    def codes(self) -> frozenset[str]:
        """Every code that it names."""
        if self.name in CLAUSE_FILES:
            return _codes()[self.name]
        return frozenset(code for known in _codes().values() for code in known if code.startswith(self.name))

    def covers(self, finding: Finding) -> bool:
        """Whether a finding is named by it."""
        return finding.clause == self.name or finding.code.startswith(self.name)


def read_names(texts: Iterable[str] | None, origin: str) -> list[Wanted] | None:
    """What an option names; None where it was not given. Names may be joined by commas.

    Raises:
        UsageError: a name is no clause or code.

    Example:
        >>> [item.name for item in read_names(["finite,em171"], "--select")]
        ['finite', 'EM171']
    """
    if texts is None:
        return None
    given = [texts] if isinstance(texts, str) else texts
    return [Wanted.read(name, origin) for text in given for name in str(text).split(",") if name.strip()]


def complete_selection(
    select: Sequence[Wanted] | None, ignore: Sequence[Wanted] | None, settings: Settings
) -> tuple[ClauseSelection, list[str]]:
    """The selection, with what the project has set where an option was not given, and the keys that were taken.

    What an option selects is not ignored by the settings, unless they name it more narrowly.

    Raises:
        UsageError: a name is no clause or code, or nothing is left to test.
    """
    used: list[str] = []
    wanted, unwanted = list(select or ()), list(ignore or ())
    if select is None:
        wanted = read_names(settings.select, settings.origin) or []
        used += ["select"] if wanted else []
    if ignore is None:
        asked_for = [item.codes() for item in select or ()]
        read = read_names(settings.ignore, settings.origin) or []
        unwanted = [item for item in read if not any(codes <= item.codes() for codes in asked_for)]
        used += ["ignore"] if unwanted else []
    return select_clauses(wanted, unwanted), used


def select_clauses(select: Iterable[Wanted] = (), ignore: Iterable[Wanted] = ()) -> ClauseSelection:
    """The selection that is asked for. Nothing selected means everything; what is ignored is out in any case.

    Raises:
        UsageError: nothing is left to test.

    Example:
        >>> chosen = select_clauses([Wanted("EM17", "--select"), Wanted("finite", "--select")])
        >>> chosen.clauses
        ('batch-independent', 'finite')
    """
    wanted, unwanted = tuple(select), tuple(ignore)
    out = {item.name for item in unwanted}
    left = [name for name in CLAUSE_FILES if name not in out]
    if wanted:
        named = {item.name for item in wanted}
        gone = frozenset(code for item in unwanted for code in item.codes())
        counted = frozenset(code for item in wanted for code in item.codes()) - gone
        left = [name for name in left if name in named or counted & _codes()[name]]
    if not left:
        who = " and ".join(dict.fromkeys(item.origin for item in (*wanted, *unwanted)))
        raise UsageError(
            f"{who} leave no clause to test: " + ", ".join(item.name for item in unwanted) + " ignored",
            expected="at least one of the selected",
        )
    return ClauseSelection(wanted, unwanted, tuple(left) if len(left) < len(CLAUSE_FILES) else None)


@dataclasses.dataclass(frozen=True, slots=True)
class ClauseSelection:
    """What is selected and ignored. `clauses` are those to test, None for all: hand them to `check`."""

    select: tuple[Wanted, ...] = ()
    ignore: tuple[Wanted, ...] = ()
    clauses: tuple[str, ...] | None = None

    def applied(self, certificate: Certificate) -> Certificate:
        """The certificate with what is ignored left out of the verdicts, and said.

        A finding that does not count gets the severity `ignored`. A clause that nothing else breaks is `allowed`; a
        clause that is ignored by its own name is `not tested`.
        """
        if not self.select and not self.ignore:
            return certificate
        findings = tuple(self._judged(finding) for finding in certificate.findings)
        results = {result.clause: self._result(result, certificate.findings) for result in certificate.clauses}
        for item in self.ignore:
            if item.name in CLAUSE_FILES and item.name not in results:
                results[item.name] = ClauseResult(
                    clause=item.name, verdict=Verdict.NOT_TESTED, evidence=f"ignored by {item.origin}"
                )
        order = [name for name in CLAUSES if name in results]
        clauses = tuple(results[name] for name in (*order, *(name for name in results if name not in CLAUSES)))
        return msgspec.structs.replace(certificate, findings=findings, clauses=clauses)

    def _reason(self, finding: Finding) -> str:
        """Why a finding does not count; empty if it does."""
        for item in self.ignore:
            if item.covers(finding):
                return f"by {item.origin}"
        if self.select and not any(item.covers(finding) for item in self.select):
            return _UNSELECTED
        return ""

    def _judged(self, finding: Finding) -> Finding:
        if finding.severity is Severity.ALLOWED or not self._reason(finding):
            return finding
        return dataclasses.replace(finding, severity=Severity.IGNORED)

    def _result(self, result: ClauseResult, everything: Sequence[Finding]) -> ClauseResult:
        found = [item for item in everything if item.clause == result.clause and item.severity is not Severity.ALLOWED]
        reasons = {index: self._reason(finding) for index, finding in enumerate(found)}
        causes = result.through if result.verdict is Verdict.BROKEN else ()
        through = {through_text(code, path): self._ignored_code(code) for code, path in causes}
        said: dict[str, list[str]] = {}
        for index, finding in enumerate(found):
            if reasons[index]:
                said.setdefault(reasons[index], []).append(_at(finding))
        for text, reason in through.items():
            if reason:
                said.setdefault(reason, []).append(text)
        if not said:
            return result
        lines = tuple(f"ignored: {', '.join(dict.fromkeys(parts))} ({reason})" for reason, parts in said.items())
        errors = {index: item for index, item in enumerate(found) if item.severity is Severity.ERROR}
        left = [f"{item.code} {item.summary}" for index, item in errors.items() if not reasons[index]]
        left += [text for text, reason in through.items() if not reason]
        if result.verdict is not Verdict.BROKEN or len(left) == len(errors) + len(through):  # only notes are ignored
            return _with(result, result.verdict, result.evidence, (*result.notes, *lines))
        if left:
            return _with(result, Verdict.BROKEN, "; ".join(left), (*result.notes, *lines))
        return _with(result, Verdict.ALLOWED, lines[0], (*result.notes, *lines[1:]))

    def _ignored_code(self, code: str) -> str:
        """Who ignores a code of another clause; what is merely not selected still breaks the clause that is."""
        home = next((name for name, known in _codes().items() if code in known), "")
        cause = Finding(code=code, clause=home, summary="")
        return next((f"by {item.origin}" for item in self.ignore if item.covers(cause)), "")


@functools.cache
def _codes() -> dict[str, frozenset[str]]:
    """The codes of each clause that `check` tests."""
    return {clause: frozenset(page.codes) for clause, page in pages().items()}


def _at(finding: Finding) -> str:
    return f"{finding.code} at {finding.place.module or 'the model itself'}"


def _with(result: ClauseResult, verdict: Verdict, evidence: str, notes: tuple[str, ...]) -> ClauseResult:
    return msgspec.structs.replace(result, verdict=verdict, evidence=evidence, notes=notes)
