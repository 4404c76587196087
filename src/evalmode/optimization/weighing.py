"""How much memory a plan needs, beside what plain `eval()` does: a plan that needs more is not taken."""

from __future__ import annotations

from dataclasses import dataclass

from evalmode.backends.backend import Chunk
from evalmode.optimization.footprint import peak_bytes_of, resident_bytes, tidy
from evalmode.optimization.subject import Subject
from evalmode.optimization.trial import REJECTED, Trial

__all__ = ["SLACK_BYTES", "Scales", "peak_of"]

SLACK_BYTES = 16 << 20  # arenas and pages: what the kernel counts differs by so much between equal runs


@dataclass
class Scales:
    """Weighs trials once each. `limit` is how many times plain's peak a plan may need, None for no limit.

    Units: bytes.
    """

    subject: Subject
    limit: float | None = 1.0
    plain_peak: int | None = None

    def weigh(self, trial: Trial, *, again: bool = False) -> str:
        """Why a trial needs too much memory; empty where it does not, or where the kernel does not say."""
        size = max(self.subject.sizes)
        if self.plain_peak is None:
            working = peak_bytes_of(self.subject.plain(size))
            self.plain_peak = None if working is None else self.subject.weight_bytes() + working
        if trial.peak_bytes is None or again:
            trial.peak_bytes = peak_of(trial, self.subject, size)
        if self.limit is None or trial.peak_bytes is None or self.plain_peak is None:
            return ""
        if trial.peak_bytes <= self.limit * self.plain_peak + SLACK_BYTES:
            return ""
        return f"needs {trial.peak_bytes / 1e6:.0f} MB, plain eval() {self.plain_peak / 1e6:.0f} MB"

    def exclude_if_too_heavy(self, trial: Trial) -> None:
        """Put a trial out of the running for its memory."""
        problem = self.weigh(trial)
        if problem:
            trial.too_heavy = True
            trial.exclude(REJECTED, f"rejected: {problem}")


def peak_of(trial: Trial, subject: Subject, size: int) -> int | None:
    """The peak of a plan while it runs a batch of `size`: what all its executors hold, and what a call needs beside it.

    Executors are loaded from their payloads where they have them, so that nothing of the build is counted; nor is what
    loading needs for a moment, as it is not of plain.

    Units: bytes; None where the kernel does not say.
    """
    executors = sorted(trial.executors.values(), key=lambda each: each.configuration.batch)
    batch = executors[-1].configuration.batch
    inputs = tuple(tensor.contiguous() for tensor in subject.program.inputs_at(batch))
    chunks: list[Chunk] = [inputs] * max(1, -(-size // batch))  # with several streams, so many run at once
    backend = trial.candidate.backend
    payloads = [each.payload() if backend.load and not backend.native_code else None for each in executors]
    if backend.load is None or None in payloads:
        working = peak_bytes_of(lambda: executors[-1].run(chunks))
        return None if working is None else subject.weight_bytes() + working
    tidy()
    before = resident_bytes()
    outputs = len(subject.program.output_axes)
    loaded = [
        backend.load(payload, each.configuration, outputs)
        for payload, each in zip(payloads, executors, strict=True)
        if payload is not None
    ]
    tidy()
    after = resident_bytes()
    working = peak_bytes_of(lambda: loaded[-1].run(chunks))
    for each in loaded:
        each.close()
    return None if before is None or after is None or working is None else max(after - before, 0) + working
