"""What a search came to: the predictor that runs, its certificate, and what is kept for the next search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from evalmode.backends.backend import Backend
from evalmode.backends.catalog import backend_named
from evalmode.backends.configuration import Configuration
from evalmode.certificate import Certificate, ClauseResult, ModelRecord, OptimizationRecord, PlanRecord
from evalmode.clause import Verdict
from evalmode.errors import BackendError, OptimizationError, UnstableModelError
from evalmode.mode.streams import StreamHold, hold_streams, release_streams
from evalmode.observe.fingerprint import environment_record, fingerprint, model_record
from evalmode.observe.tree import describe, same_bits
from evalmode.optimization.candidates import Candidate
from evalmode.optimization.companions import other_alone
from evalmode.optimization.plan_cache import CachedPlan
from evalmode.optimization.samples import Run, ran
from evalmode.optimization.search import PLAIN, Search
from evalmode.optimization.trial import FAILED, VERIFIED, Trial, started
from evalmode.optimization.verification import Verification
from evalmode.predictor.optimized import OptimizedPredictor

__all__ = ["cached_plan", "predictor_of", "resume"]

_OVERRUN = 1.2  # times the budget: more is said

PROBE_SAMPLES = 8  # of the given batch, kept in the predictor: for artifacts, and for `refresh`


def predictor_of(search: Search, model: nn.Module, objective: str, known: CachedPlan | None) -> OptimizedPredictor:
    """The predictor of the chosen plan, or of plain eager where nothing was chosen, with its certificate.

    Raises:
        UnstableModelError: plain eager has to run, and is not stable even alone.
    """
    subject, stable = search.subject, search.settings.stable
    trial = search.chosen or _plain_trial(search)
    record = _optimization_record(search, trial, objective, known)
    probes = subject.program.inputs_at(min(PROBE_SAMPLES, max(subject.program.batch, 1)))
    serialises = trial.candidate.backend.load is not None
    tested = model_record(model)
    predictor = trial.predictor(
        subject,
        stable=stable,
        record=record.chosen,
        probes=probes,
        model=model,
        serialisable=None if serialises else _Writable(search, tested, objective, probes, resumed=known is not None),
    )
    predictor.attach(_certificate(search, trial, tested, record))
    return predictor


def resume(search: Search, known: CachedPlan) -> bool:
    """Build a plan that an earlier search chose, and put it through the gate again. False where it no longer holds."""
    search.scales.plain_peak = known.record.plans[0].peak_bytes
    if not known.configurations:
        search.contest.plain_seconds = _by_size(known.record.plans[0].seconds)
        return True
    by_size = sorted(known.configurations, key=lambda configuration: configuration.batch, reverse=True)
    candidate = Candidate(backend_named(by_size[0].backend), by_size[0], known.form)
    if candidate.backend.missing() is not None:
        return False
    trial = started(search.subject, candidate, {})
    if trial.outcome == FAILED or any(trial.add_size(search.subject, other.batch) for other in by_size[1:]):
        trial.close()
        return False
    if not search.holds(trial):
        trial.close()
        return False
    before = known.record.chosen
    trial.outcome, trial.speedup, trial.peak_bytes = VERIFIED, before.speedup, before.peak_bytes
    trial.seconds, search.contest.plain_seconds = _by_size(before.seconds), _by_size(known.record.plans[0].seconds)
    search.trials.append(trial)
    search.chosen = trial
    return True


def cached_plan(predictor: OptimizedPredictor) -> CachedPlan:
    """What a later search, or `refresh`, begins with."""
    certificate = predictor.certificate
    if certificate is None or certificate.optimization is None:
        raise OptimizationError(f"{predictor!r} carries no record of a search")
    record = certificate.optimization
    plain = record.chosen.outcome == "plain"
    return CachedPlan(
        configurations=() if plain else predictor.plan.configurations,
        form=form_of(record.chosen.passes),
        record=record,
    )


def _by_size(seconds: dict[str, float]) -> dict[int, float]:
    return {int(size): each for size, each in seconds.items()}


def form_of(passes: tuple[str, ...]) -> str:
    """The form of the model that these passes made.

    Example:
        >>> form_of(()), form_of(("fold-batch-norm",)), form_of(("fold-batch-norm", "channels-last"))
        ('', 'passes', 'channels-last')
    """
    return "channels-last" if "channels-last" in passes else "passes" if passes else ""


def _plain_trial(search: Search) -> Trial:
    """Plain eager at the callers' size; one sample at a time where that is not stable."""
    settings, subject = search.settings, search.subject
    eager = backend_named("eager")
    largest = min(max(subject.sizes), 64)
    sizes = dict.fromkeys((largest, 1)) if search.has_batch_axis() else (1,)
    problem = ""
    for size in sizes:
        if size == 1 and problem:
            _ = search.judge.reference  # it refuses a model whose samples look at each other: alone, they cannot
        configuration = Configuration(backend="eager", batch=size, threads=settings.threads, device=settings.device)
        trial = started(subject, Candidate(eager, configuration), {})
        if trial.outcome == FAILED:
            raise BackendError(f"plain eager cannot be built: {trial.reason}")
        runs = trial.runs(subject)
        problem = search.judge.instability(runs) if settings.stable else ""
        if not problem:
            trial.verification = _as_the_model(search, runs, size) or search.judge.verify(runs)
            return trial
        trial.close()
    raise UnstableModelError(
        f"a sample alone does not get the same bits again: {problem}",
        expected="a model that is deterministic in evaluation mode",
        fix="evalmode.check(model, batch) names the line; or optimize(..., stable=False)",
        explain="deterministic",
    )


def _as_the_model(search: Search, runs: Mapping[int, Run], size: int) -> Verification | None:
    """Plain eager is the model itself, which its bits show at once; None where they do not.

    One sample at a time, or where stability was not tested, it is so only if a sample's answer is its own, which the
    answers in fp64 tell; so they do where a sample alone seems to get another answer than in a batch.
    """
    samples, subject = search.judge.samples, search.subject
    if search.has_batch_axis() and (size == 1 or not search.settings.stable):
        return None
    probes = 0
    for positions, found in ran(runs[size], samples, range(len(samples)), size):
        with torch.no_grad():
            expected = subject.plain_flat(*samples.at(positions))
        if not all(same_bits(one, other) for one, other in zip(found, expected, strict=True)):
            return None
        alone = (subject.plain_flat, subject.program.output_axes, samples, positions, found)
        if not probes and search.has_batch_axis() and other_alone(*alone):
            return None
        probes += size
    return Verification(
        accepted=True,
        reason=f"the bits of the model's own answers over {len(samples)} samples",
        strength="bitwise",
        samples=len(samples),
        probes=probes,
    )


@dataclass
class _Writable:
    """Called, it gives the fastest plan that can be written into a file, verified now.

    Where the plan is of an earlier search (`resumed`), that search is made again, once.

    Raises, when called:
        BackendError: there is none, and why.
    """

    search: Search
    tested: ModelRecord
    objective: str
    probes: Sequence[Tensor]
    resumed: bool

    def __call__(self) -> OptimizedPredictor:
        hold = StreamHold()
        hold_streams(hold)
        try:
            return self._fastest()
        finally:
            release_streams(hold)

    def _fastest(self) -> OptimizedPredictor:
        subject = self.search.subject
        model: Any = subject.flat.model
        if not subject.exported.copied and fingerprint(model) != subject.weights:
            raise BackendError("the model cannot be copied, and its weights have changed since")
        if self.resumed and any(_writes_files(backend) for backend in self.search.settings.backends):
            self.search = replace(self.search, started_at=None, trials=[], chosen=None, progress=_silent)
            self.search.run()
            if self.search.chosen is not None:
                self.search.chosen.close()
        self.resumed = False
        search = self.search
        reasons: list[str] = []
        for before in sorted(search.trials, key=lambda trial: -(trial.speedup or 0.0)):
            if not _writes_files(before.candidate.backend):
                continue
            if before.outcome in {"rejected", "unstable", FAILED}:
                reasons.append(f"{before.name}: {before.reason}")
                continue
            trial = started(search.subject, before.candidate, {})
            if trial.outcome != FAILED and search.holds(trial):
                predictor = trial.predictor(search.subject, stable=search.settings.stable, probes=self.probes)
                record = _optimization_record(search, trial, self.objective, None)
                predictor.attach(_certificate(search, trial, self.tested, record))
                return predictor
            reasons.append(f"{before.name}: {trial.reason or 'does not pass the gate'}")
            trial.close()
        raise BackendError(
            "; ".join(dict.fromkeys(reasons)) or "no back end that writes files was among those that were tried"
        )


def _silent(stage: str, done: int, total: int | None) -> None:
    """Nobody waits for a file with a progress bar in front of them."""


def _writes_files(backend: Backend) -> bool:
    """Whether it makes files of data alone."""
    return backend.load is not None and not backend.native_code


def _optimization_record(search: Search, trial: Trial, objective: str, known: CachedPlan | None) -> OptimizationRecord:
    subject, settings = search.subject, search.settings
    used = msgspec.structs.replace(trial.record(chosen=True), passes=subject.passes.get(trial.candidate.form, ()))
    plain_rate = {size: size / seconds for size, seconds in search.contest.plain_seconds.items() if seconds}
    plain = PlanRecord(
        name=PLAIN,
        outcome="plain",
        threads=settings.threads,
        seconds={str(size): seconds for size, seconds in search.contest.plain_seconds.items()},
        samples_per_second=plain_rate[max(plain_rate)] if plain_rate else None,
        speedup=1.0,
        error=1.0,
        peak_bytes=search.scales.plain_peak,
    )
    others = [each for each in search.trials if each is not trial]
    others.sort(key=lambda each: -(each.speedup or 0.0))
    tried = {each.candidate.configuration.backend for each in search.trials}
    missing = [
        PlanRecord(name=backend.name, backend=backend.name, outcome="not installed", reason=backend.missing() or "")
        for backend in settings.backends
        if backend.name not in tried and backend.missing() is not None
    ]
    notes = list(search.notes)
    if trial.non_finite is not None:
        notes.append(f"{trial.candidate.backend.name} does not answer as the model does: {trial.non_finite}")
    if known is not None:
        notes.append("timed in an earlier search on this machine; verified now")
    elif search.used > _OVERRUN * settings.budget + 1:
        notes.append(f"the search took {search.used:.0f} s, its budget was {settings.budget:.0f} s")
    plans = (plain, *((used,) if search.chosen is not None else ()), *(each.record() for each in others), *missing)
    if known is not None and known.record.plans:
        told = {plain.name, used.name}
        plans = (
            *plans[: 1 + (search.chosen is not None)],
            *(each for each in known.record.plans if each.name not in told),
        )
    return OptimizationRecord(
        tolerance=search.judge.tolerance.kind,
        objective=objective,
        batch_sizes=subject.sizes,
        execution_sizes=tuple(sorted(trial.executors)),
        stable=settings.stable,
        plans=plans,
        notes=tuple(notes),
        seconds=search.used,
    )


def _certificate(search: Search, trial: Trial, model: ModelRecord, record: OptimizationRecord) -> Certificate:
    """The clause `faithful`, and what was tried."""
    found = trial.verification
    name = trial.candidate.configuration.backend
    clause = ClauseResult(
        clause="faithful",
        verdict=Verdict.KEPT if found is not None and found.accepted else Verdict.UNDECIDED,
        probes=found.probes if found is not None else 0,
        evidence=f"{name}: {found.reason.removesuffix(f' over {found.samples} samples')}" if found else name,
        notes=tuple(found.notes) if found is not None else (),
    )
    return Certificate(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        subject=model.name,
        model=model,
        environment=environment_record(search.settings.device),
        inputs=describe(search.subject.batch(max(search.subject.sizes))),
        clauses=(clause,),
        optimization=record,
        seconds=record.seconds,
    )
