"""One candidate on trial: what is built of it, and what is found out and said about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from evalmode.backends.backend import Chunk, Executor
from evalmode.backends.catalog import backend_named
from evalmode.backends.configuration import Configuration
from evalmode.certificate import PlanRecord
from evalmode.errors import EvalmodeError
from evalmode.optimization.candidates import Candidate, build_estimate
from evalmode.optimization.samples import Run
from evalmode.optimization.subject import Subject
from evalmode.optimization.verification import Verification
from evalmode.predictor.non_finite import answered, broken_samples
from evalmode.predictor.optimized import OptimizedPredictor
from evalmode.predictor.plan import NonFinite

__all__ = ["Trial", "likely_seconds", "started"]

FAILED, REJECTED, UNSTABLE, VERIFIED = "failed", "rejected", "unstable", "verified"
UNTESTED, UNJUDGED = "not tried", "not judged"
_CONVERTED = 0.5  # of a first build: what the graph was converted to is kept for the next


@dataclass(eq=False)
class Trial:
    """A candidate with its executors by size. `outcome` is empty while it is in the running.

    `non_finite` says what answers samples of non-finite inputs where the back end does not answer them as the model
    does; `plain` runs the model itself, for that. `too_heavy` tells that it is out for the memory it needs.
    """

    candidate: Candidate
    executors: dict[int, Executor] = field(default_factory=dict)
    costs: dict[int, float] = field(default_factory=dict)
    build_seconds: float = 0.0
    outcome: str = ""
    reason: str = ""
    verification: Verification | None = None
    speedup: float | None = None
    seconds: dict[int, float] = field(default_factory=dict)
    peak_bytes: int | None = None
    non_finite: NonFinite | None = None
    plain: Executor | None = None
    too_heavy: bool = False

    def runs(self, subject: Subject) -> dict[int, Run]:
        """What runs executions, by size: as the predictor will, NaN included."""
        if (wanted := self.non_finite) is None:
            return {size: executor.run for size, executor in self.executors.items()}
        program = subject.program

        def guarded(run: Run) -> Run:
            def around(chunks: Sequence[Chunk]) -> list[Chunk]:
                found = []
                for chunk, outputs in zip(chunks, run(chunks), strict=True):
                    broken = broken_samples(chunk, program.input_axes, wanted.minus)
                    parts = chunk, program.input_axes, outputs, program.output_axes
                    found.append(tuple(answered(self.plain, *parts, broken)))
                return found

            return around

        return {size: guarded(executor.run) for size, executor in self.executors.items()}

    def see_to_non_finite(self, subject: Subject) -> bool:
        """Answer samples of non-finite inputs around the back end: with NaN, then by the model; False if both were."""
        inputs = subject.program.inputs
        minus = tuple(place for place, tensor in enumerate(inputs) if not bool((tensor == -torch.inf).any()))
        if self.non_finite is None:
            self.non_finite = NonFinite("nan", minus)
            return True
        if self.plain is not None or self.candidate.backend.name == "eager":
            return False
        size, shape = subject.exported.smallest, self.candidate.configuration
        alone = Configuration(backend="eager", batch=size, threads=shape.threads, device=shape.device)
        try:
            self.plain = backend_named("eager").build(subject.program_for(size, ""), alone)
        except EvalmodeError:
            return False
        self.non_finite = NonFinite("plain", minus)
        if self.peak_bytes is not None:
            self.peak_bytes += subject.weight_bytes()
        return True

    @property
    def running(self) -> bool:
        """Whether nothing speaks against it so far."""
        return bool(self.executors) and self.outcome in {"", VERIFIED}

    @property
    def name(self) -> str:
        """As tables name it."""
        return self.candidate.name

    def lose(self, winner: Trial | None) -> None:
        """Another one runs, or plain where there is no winner: say why, where the figures do not."""
        best = 1.0 if winner is None or winner.speedup is None else winner.speedup
        ahead = not self.reason and self.speedup is not None and self.speedup > best
        if not self.outcome:  # it was timed, and others were faster
            self.outcome = UNJUDGED
            self.reason = "not judged: no time was left, or it was not ahead then" if ahead else ""
        elif self.outcome == VERIFIED and ahead:
            self.reason = f"not surely faster than {'plain eval()' if winner is None else winner.name}"

    def exclude(self, outcome: str, reason: str) -> None:
        """Put it out of the running, and give back what it holds."""
        self.outcome, self.reason = outcome, reason
        self.close()

    def close(self) -> None:
        """Give back its executors."""
        for executor in (*self.executors.values(), *([self.plain] if self.plain is not None else [])):
            executor.close()
        self.executors = {}

    def predictor(self, subject: Subject, *, stable: bool, **parts: Any) -> OptimizedPredictor:
        """What the user would run: all of its overhead is in the timings."""
        sizes = sorted(self.executors)
        configurations = [self.executors[size].configuration for size in sizes]
        costs = [self.costs.get(size, float(size)) for size in sizes]
        record = parts.pop("record", None)
        plan = subject.plan(configurations, costs, stable=stable, non_finite=self.non_finite, record=record)
        return OptimizedPredictor(
            plan,
            [self.executors[size] for size in sizes],
            outputs=subject.exported.output_structure,
            plain=self.plain,
            **parts,
        )

    def add_size(self, subject: Subject, size: int, clock: Callable[[], float] = time.perf_counter) -> str:
        """Build one more execution size; the reason, if that fails."""
        candidate = self.candidate.at(batch=size)
        begin = clock()
        try:
            program = subject.program_for(size, candidate.form)
            if candidate.backend.needs_export and program.exported is None:
                return f"the model does not export: {program.export_error}"
            self.executors[size] = candidate.backend.build(program, candidate.configuration)
        except EvalmodeError as error:
            return str(error).splitlines()[0]
        except Exception as error:  # noqa: BLE001 - whatever a back end raises excludes it, and is said
            return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        finally:
            self.build_seconds += clock() - begin
        return ""

    def remove_size(self, size: int) -> None:
        """Give an executor back."""
        self.executors.pop(size).close()
        self.costs = {}

    def record(self, *, chosen: bool = False) -> PlanRecord:
        """The line of this candidate in the certificate."""
        configuration = self.candidate.configuration
        rate = {size: size / seconds for size, seconds in self.seconds.items() if seconds > 0}
        return PlanRecord(
            name=self.name,
            backend=configuration.backend,
            precision=configuration.precision,
            batch=configuration.batch,
            threads=configuration.threads,
            streams=configuration.streams,
            outcome="chosen" if chosen else self.outcome or UNTESTED,
            reason=self.reason,
            seconds={str(size): seconds for size, seconds in self.seconds.items()},
            samples_per_second=rate[max(rate)] if rate else None,
            speedup=self.speedup,
            error=self.verification.ratio if self.verification is not None else None,
            peak_bytes=self.peak_bytes,
            build_seconds=self.build_seconds,
        )


def started(
    subject: Subject, candidate: Candidate, known: Mapping[str, Trial], clock: Callable[[], float] = time.perf_counter
) -> Trial:
    """A trial with its first executor built; `failed` with the reason where that is not possible.

    A back end that failed before for a reason of the model is not asked again.
    """
    trial = Trial(candidate)
    before = known.get(candidate.kind)
    if before is not None and before.outcome == FAILED:
        trial.outcome, trial.reason = FAILED, before.reason
        return trial
    problem = trial.add_size(subject, candidate.configuration.batch, clock)
    if problem:
        trial.exclude(FAILED, problem)
    return trial


def likely_seconds(candidate: Candidate, trials: Iterable[Trial], operators: int) -> float:
    """About how long a build takes: as long as the quickest of the same kind, or as such builds usually do.

    Where the first build of a kind holds a conversion that is kept, a variation takes a part of it.

    Units: seconds.
    """
    first, varied = (
        [
            trial.build_seconds
            for trial in trials
            if trial.candidate.kind == candidate.kind
            and trial.build_seconds
            and trial.outcome != FAILED
            and trial.candidate.varied is wanted
        ]
        for wanted in (False, True)
    )
    if candidate.varied and candidate.backend.streams:
        first = [seconds * _CONVERTED for seconds in first]
    elif first:
        varied = []
    return min([*first, *varied], default=build_estimate(candidate.backend.name, operators))
