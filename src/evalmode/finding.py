"""A finding: one thing that is wrong, where it is, what was seen, and how to mend it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Finding", "Place", "Severity"]


class Severity(enum.StrEnum):
    """How much a finding weighs: an error breaks its clause, a note does not.

    `allowed` is intended at its module path; `ignored` is left out of the verdict by its code, and said.
    """

    ERROR = "error"
    ALLOWED = "allowed"
    IGNORED = "ignored"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something happened: a module path inside the model and a line of the user's code.

    Every part may be unknown (`""` or `0`): a module in training has a path but no line.
    """

    module: str = ""
    file: str = ""
    line: int = 0
    source: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else ""
        return "  ".join(part for part in (self.module or "(the model itself)", where, self.source) if part)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong (or allowed, or worth a note) that a clause has seen.

    `code` (EM101) is never reused; `clause` is a name of `evalmode.clause.CLAUSES`; `summary` is one line; `seen` is
    the measurement; `fix` is what to write instead.
    """

    code: str
    clause: str
    summary: str
    place: Place = Place()
    seen: str = ""
    fix: str = ""
    severity: Severity = Severity.ERROR
