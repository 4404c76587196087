"""The clauses of the evaluation contract and the verdicts on them: the words of the whole project."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["CLAUSES", "Clause", "Verdict"]


class Verdict(enum.StrEnum):
    """What was found about one clause; every verdict but `NOT_TESTED` comes with a number of probes."""

    KEPT = "kept"
    BROKEN = "broken"
    ALLOWED = "allowed"
    UNDECIDED = "undecided"
    NOT_TESTED = "not tested"


@dataclass(frozen=True, slots=True)
class Clause:
    """One promise of evaluation mode. `name` is what the user reads and types."""

    name: str
    promise: str


CLAUSES = MappingProxyType(
    {
        name: Clause(name, promise)
        for name, promise in (
            ("mode-complete", "every part of the model that has a mode is in evaluation mode"),
            ("no-randomness", "a forward pass draws no random number"),
            ("running-statistics", "every normalisation layer with learned statistics uses them, and they are sound"),
            ("no-state-change", "a forward pass changes nothing that the model owns"),
            ("no-gradients", "no graph is built, no .grad moves, backward() has no effect"),
            ("deterministic", "the same input gives the same bits"),
            ("batch-independent", "a sample's output depends on that sample alone"),
            ("finite", "finite inputs give finite outputs"),
            ("restores", "leaving evaluation gives back exactly the state before it"),
            ("faithful", "the optimised model computes the same function"),
        )
    }
)
"""Every clause by name, in the order in which reports show them."""
