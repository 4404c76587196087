"""How much memory a plan needs, beside what plain `eval()` does: a plan that needs more is not taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from evalmode.backends.backend import Executor
from evalmode.optimization.footprint import peak_bytes_of, resident_bytes, tidy
from evalmode.optimization.subject import Subject
from evalmode.optimization.trial import FAILED, REJECTED, Trial

__all__ = ["SLACK_BYTES", "Scales", "peak_of"]

SLACK_BYTES = 16 << 20  # arenas and pages: what the kernel counts differs by so much between equal runs


@dataclass
class Scales:
    """Weighs trials, once each. `limit` is how many times plain's peak a plan may need, None for no limit.

    Plain and plans are called as often, `calls` times: some back ends take their memory in the second call.

    Units: bytes; `plain_peak` is None before the first trial, and where the kernel does not say.
    """

    subject: Subject
    limit: float | None = 1.0
    plain_peak: int | None = None
    calls: int = 2

    def measure(self, trial: Trial) -> None:
        """Weigh a trial, whatever was measured of it before.

        Raises: whatever its back end raises when it is loaded or run.
        """
        size = max(self.subject.sizes)
        if self.plain_peak is None:
            working = peak_bytes_of(_repeated(self.subject.plain(size), self.calls))
            if working is None:
                return
            self.plain_peak = self.subject.weight_bytes() + working
        trial.peak_bytes = peak_of(trial, self.subject, size, self.calls)

    def excess(self, trial: Trial) -> str:
        """Why a trial that was weighed needs too much memory; empty where it does not, or where nothing is known."""
        if self.limit is None or trial.peak_bytes is None or self.plain_peak is None:
            return ""
        if trial.peak_bytes <= self.limit * self.plain_peak + SLACK_BYTES:
            return ""
        return f"needs {trial.peak_bytes / 1e6:.0f} MB, plain eval() {self.plain_peak / 1e6:.0f} MB"

    def exclude_if_too_heavy(self, trial: Trial) -> None:
        """Put a trial out of the running for its memory, or because it fails when it is loaded anew."""
        if trial.peak_bytes is None:
            try:
                self.measure(trial)
            except Exception as error:  # noqa: BLE001 - whatever a back end or a full disk raises excludes it
                trial.exclude(FAILED, f"fails when it is loaded: {type(error).__name__}: {error}".splitlines()[0])
                return
        problem = self.excess(trial)
        if problem:
            trial.too_heavy = True
            trial.exclude(REJECTED, f"rejected: {problem}")


def peak_of(trial: Trial, subject: Subject, size: int, calls: int = 2) -> int | None:
    """The peak of a plan while it answers a batch of `size`: what its executors hold, and what the call needs beside.

    Executors are loaded from their payloads where they have them, so that nothing of the build is counted; nor is what
    loading needs for a moment, as it is not of plain. Of others what they hold is taken to be the model's weights, and
    so of the model itself where it runs beside the plan.

    Units: bytes; None where the kernel does not say.
    """
    batch, payloads = subject.batch(size), _payloads(trial)  # both held from now on, so that they do not count
    tidy()
    before = resident_bytes()
    with _loaded(trial, subject, payloads) as executors:
        anew = executors is not trial.executors
        tidy()
        after = resident_bytes()
        predictor = replace(trial, executors=executors).predictor(subject, stable=False)
        working = peak_bytes_of(_repeated(lambda: predictor.predict(batch), calls))
    if before is None or after is None or working is None:
        return None
    held = max(after - before, 0) if anew else subject.weight_bytes()
    return held + working + (subject.weight_bytes() if trial.plain is not None else 0)


def _repeated(call: Callable[[], object], calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            call()

    return run


def _payloads(trial: Trial) -> dict[int, bytes]:
    """What its executors are made of again; empty where that is not possible without running the file's own code."""
    backend = trial.candidate.backend
    if backend.load is None or backend.native_code:
        return {}
    found = {size: executor.payload() for size, executor in trial.executors.items()}
    kept = {size: payload for size, payload in found.items() if payload is not None}
    return kept if len(kept) == len(found) else {}


@contextmanager
def _loaded(trial: Trial, subject: Subject, payloads: dict[int, bytes]) -> Iterator[dict[int, Executor]]:
    """The executors of a trial made again from their payloads, or its own where there are none."""
    load = trial.candidate.backend.load
    anew: dict[int, Executor] = {}
    try:
        if load is not None:
            for size, payload in payloads.items():
                anew[size] = load(payload, trial.executors[size].configuration, len(subject.program.output_axes))
        yield anew or trial.executors
    finally:
        for executor in anew.values():
            executor.close()
