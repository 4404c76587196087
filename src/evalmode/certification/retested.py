"""What came of testing a certificate again: what is the same here, what differs, and what cannot be tested."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import msgspec

from evalmode.certificate import Certificate

__all__ = ["PARTS", "Outcome", "Retested", "Verification"]

PARTS = ("model", "environment", "contract", "plan", "test set")
"""The parts of a certificate, in the order in which they are shown."""


class Outcome(enum.StrEnum):
    """What came of testing one thing again."""

    SAME = "same"
    DIFFERS = "differs"
    UNTESTED = "cannot be tested here"


@dataclass(frozen=True, slots=True)
class Retested:
    """One thing that a certificate says, tested again. `detail` says what was then and what is here, or why it cannot
    be tested."""

    part: str
    name: str
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a certificate says, tested again here; `print(verification)` shows it.

    `certificate` is the one that was tested, `here` what the same tests gave here. `ignored` are the parts, or names of
    single results, whose differences are shown and do not count.

    Example:
        >>> from evalmode.certificate import Environment, ModelRecord
        >>> model = ModelRecord(name="Net", modules=1, parameters=2, bytes=8, fingerprint="00")
        >>> machine = Environment(
        ...     evalmode="", python="", torch="", device="", processor="", cores=2, threads=2, platform=""
        ... )
        >>> then = Certificate(created="2026-01-01", subject="Net", model=model, environment=machine)
        >>> threads = Retested("environment", "threads", Outcome.DIFFERS, "2, here 1")
        >>> Verification(then, then, (threads,)).ok, Verification(then, then, (threads,), ("environment",)).ok
        (False, True)
    """

    certificate: Certificate
    here: Certificate
    results: tuple[Retested, ...]
    ignored: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def ok(self) -> bool:
        """Nothing that counts differs."""
        return not any(self.counts(result) for result in self.differing)

    @property
    def same(self) -> tuple[Retested, ...]:
        """What is the same here."""
        return self._with(Outcome.SAME)

    @property
    def differing(self) -> tuple[Retested, ...]:
        """What differs here, what is ignored among it."""
        return self._with(Outcome.DIFFERS)

    @property
    def untested(self) -> tuple[Retested, ...]:
        """What cannot be tested here; the detail says why."""
        return self._with(Outcome.UNTESTED)

    def counts(self, result: Retested) -> bool:
        """Whether a difference in `result` counts: neither its part nor its name is ignored."""
        return not {result.part, result.name} & set(self.ignored)

    def to_json(self) -> bytes:
        """Everything as indented JSON."""
        content: dict[str, Any] = {
            "ok": self.ok,
            "subject": self.certificate.subject,
            "created": self.certificate.created,
            "results": [{**msgspec.to_builtins(result), "counts": self.counts(result)} for result in self.results],
            "ignored": self.ignored,
            "seconds": self.seconds,
            "here": self.here,
        }
        return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"

    def __str__(self) -> str:
        from evalmode.terminal.verification import verification_text  # needs rich, which a verification does not

        rows = [(result.part, result.name, str(result.outcome), result.detail) for result in self.results]
        return verification_text(
            self.certificate.subject, self.certificate.created, rows, ignored=self.ignored, seconds=self.seconds
        )

    def _with(self, outcome: Outcome) -> tuple[Retested, ...]:
        return tuple(result for result in self.results if result.outcome is outcome)
