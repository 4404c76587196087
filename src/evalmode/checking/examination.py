"""What a clause hands back when it has looked at a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from evalmode.clause import Verdict
from evalmode.finding import Finding

__all__ = ["Examination", "Measured"]

Measured = dict[str, float | int | str | bool | list[int] | list[list[int]] | list[list[float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """The findings of one clause and the evidence for its verdict.

    `verdict` is set only where findings alone cannot say it: `NOT_TESTED` or `UNDECIDED`, with the reason as evidence.
    `through` names causes that another clause has found already, as (code, module path): they break this clause too and
    are not told again.
    """

    probes: int
    evidence: str
    findings: tuple[Finding, ...] = ()
    through: tuple[tuple[str, str], ...] = ()
    verdict: Verdict | None = None
    notes: tuple[str, ...] = ()
    measured: Measured = field(default_factory=dict)
