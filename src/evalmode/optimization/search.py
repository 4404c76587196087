"""The search: build candidates, race them beside plain `eval()`, and let only what passes the gate win.

Timing comes first, because it is cheap; then the gate and the test of stability go down the list from the fastest, so
that what is chosen has passed both. The budget bounds all of it: what was not reached is listed as not tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalmode.backends.backend import Backend
from evalmode.backends.configuration import Configuration
from evalmode.optimization.candidates import Candidate, build_estimate, first_round, variations
from evalmode.optimization.footprint import peak_bytes_of
from evalmode.optimization.judge import Judge
from evalmode.optimization.race import Race
from evalmode.optimization.subject import Subject
from evalmode.optimization.trial import FAILED, REJECTED, UNSTABLE, UNTESTED, VERIFIED, Trial, started
from evalmode.predictor.optimized import OptimizedPredictor

__all__ = ["PLAIN", "Search", "SearchSettings"]

PLAIN = "plain eval()"
SLACK_BYTES = 16 << 20  # arenas and pages: what the kernel counts differs by so much between equal runs
_FIRST, _VARIED, _JUDGED = 0.45, 0.6, 0.85  # the parts of the budget after which the next step begins
_FEW_ROUNDS, _MANY_ROUNDS = 12, 40
_WORTH_VARYING = 1.35
_VARIATIONS = 5
_MOST_REPEATS = 64


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What the user asked for. `memory` is how many times plain's peak a plan may need, None for no limit."""

    backends: tuple[Backend, ...]
    precisions: tuple[str, ...] | None
    threads: int
    device: str
    stable: bool
    budget: float
    memory: float | None = 1.0


Progress = Callable[[str, int, int | None], object]


@dataclass
class Search:
    """One search. `trials` are in the order in which they were begun; `chosen` is None where plain `eval()` stays."""

    subject: Subject
    settings: SearchSettings
    judge: Judge
    progress: Progress
    clock: Callable[[], float] = time.perf_counter
    started_at: float | None = None
    trials: list[Trial] = field(default_factory=list)
    chosen: Trial | None = None
    plain_seconds: dict[int, float] = field(default_factory=dict)
    plain_peak: int | None = None
    notes: list[str] = field(default_factory=list)
    _prepared: float = 0.0
    _predictors: dict[int, OptimizedPredictor] = field(default_factory=dict)
    _batches: dict[int, Any] = field(default_factory=dict)
    _repeats: dict[int, int] = field(default_factory=dict)
    _behind: dict[int, float] = field(default_factory=dict)

    def run(self) -> None:
        """Search until the budget is used or nothing is left to try."""
        self.started_at = self.clock() if self.started_at is None else self.started_at
        self._prepare()
        self._prepared = min(self.used, self.settings.budget)
        self._first_round()
        self._vary()
        self._judge_down_the_list()
        self._finish()

    @property
    def used(self) -> float:
        """The seconds since the search began."""
        return self.clock() - (self.started_at or 0.0)

    def _left(self, share: float = 1.0) -> float:
        """Seconds left of a share of the search; what was spent before it, as on the export, is shared by all steps."""
        return self._prepared + (self.settings.budget - self._prepared) * share - self.used

    def _prepare(self) -> None:
        """Batches of the callers' sizes, and how often each is run so that all weigh alike."""
        for size in self.subject.sizes:
            self._batches[size] = self.subject.batch(size)
            run = self.subject.plain(size)
            run()
            begin = self.clock()
            run()
            self.plain_seconds[size] = max(self.clock() - begin, 1e-9)
        longest = max(self.plain_seconds.values())
        self._repeats = {
            size: max(1, min(_MOST_REPEATS, round(longest / seconds))) for size, seconds in self.plain_seconds.items()
        }

    def _first_round(self) -> None:
        settings = self.settings
        batch = min(max(self.subject.sizes), 64) if self.has_batch_axis() else 1
        shape = Configuration(backend="", batch=batch, threads=settings.threads, device=settings.device)
        candidates = first_round(settings.backends, settings.precisions, shape, tuple(self.subject.forms))
        for number, candidate in enumerate(candidates):
            self._say(f"building {candidate.name}", number, len(candidates))
            self._begin(candidate, _FIRST)
        self._race(self._running(), rounds=_FEW_ROUNDS, seconds=self._left(_FIRST + 0.1) * 0.7)

    def _vary(self) -> None:
        """Other micro-batches, threads and streams for the back ends that came near the front."""
        ranked = self._ranked()
        if not ranked or not self.has_batch_axis():
            return
        best = self._behind[id(ranked[0])]
        for leader in [trial for trial in ranked if self._behind[id(trial)] <= _WORTH_VARYING * best][:2]:
            wanted = variations(leader.candidate, self.subject.sizes, self.settings.threads)[:_VARIATIONS]
            for number, candidate in enumerate(wanted):
                self._say(f"trying {candidate.name}", number, len(wanted))
                self._begin(candidate, _VARIED)
        self._race(self._running(), rounds=_FEW_ROUNDS, seconds=max(self._left(_VARIED + 0.1), 0.0) * 0.7)

    def _judge_down_the_list(self) -> None:
        """From the fastest on, until one is accepted and two more are known to be, or time is short."""
        accepted = 0
        for trial in self._ranked():
            if accepted and (accepted >= 3 or self._left(_JUDGED) <= 0):
                break
            self._say(f"verifying {trial.name}", accepted, None)
            self._test(trial)
            accepted += trial.outcome == VERIFIED
        if not accepted and self.settings.stable:
            self._one_at_a_time()

    def _test(self, trial: Trial) -> None:
        """The gate, then stability, then memory: what fails one of them is out."""
        if self.holds(trial):
            if self.settings.stable:
                self._serve_small_callers(trial)
            self._weigh(trial)

    def holds(self, trial: Trial) -> bool:
        """Whether a trial passes the gate and, where that is asked for, is stable; if not, it is out, and says why."""
        runs = trial.runs(self.subject)
        trial.verification = self.judge.verify(runs, self._predictor(trial))
        if trial.verification.only_non_finite:
            trial.answers_nan = True
            self._predictors.pop(id(trial), None)
            runs = trial.runs(self.subject)
            trial.verification = self.judge.verify(runs, self._predictor(trial))
        if not trial.verification.accepted:
            trial.exclude(REJECTED, f"rejected: {trial.verification.reason}")
            return False
        problem = self.judge.instability(runs) if self.settings.stable else ""
        if problem:
            trial.exclude(UNSTABLE, f"unstable: {problem}")
        return not problem

    def _weigh(self, trial: Trial) -> None:
        size = max(self.subject.sizes)
        if self.plain_peak is None:
            working = peak_bytes_of(self.subject.plain(size))
            self.plain_peak = None if working is None else self.subject.weight_bytes() + working
        trial.measure_memory(self.subject, size)
        limit = self.settings.memory
        trial.outcome = VERIFIED
        if limit is None or trial.peak_bytes is None or self.plain_peak is None:
            return
        if trial.peak_bytes > limit * self.plain_peak + SLACK_BYTES:
            trial.exclude(
                REJECTED,
                f"rejected: needs {trial.peak_bytes / 1e6:.0f} MB, plain eval() {self.plain_peak / 1e6:.0f} MB",
            )

    def _serve_small_callers(self, trial: Trial) -> None:
        """A second execution size for callers of few samples, if it gives the same bits and saves them time."""
        smallest, size = min(self.subject.sizes), trial.candidate.configuration.batch
        if (
            smallest > size // 2
            or self._left(_JUDGED) <= trial.build_seconds * 1.5
            or trial.candidate.configuration.streams > 1
        ):
            return
        if trial.add_size(self.subject, smallest, self.clock):
            return
        runs = trial.runs(self.subject)
        costs = self._execution_costs(trial)
        saves = costs[smallest] * 1.1 < costs[size]
        if saves and not self.judge.instability(runs) and self.judge.verify({smallest: runs[smallest]}).accepted:
            trial.costs = costs
            self._predictors.pop(id(trial), None)
            return
        trial.executors.pop(smallest).close()

    def _execution_costs(self, trial: Trial) -> dict[int, float]:
        calls = {}
        for size, executor in trial.executors.items():
            chunk = self.subject.program.inputs_at(size)
            calls[str(size)] = lambda executor=executor, chunk=chunk: executor.run([chunk])
        race = Race(calls, keep=tuple(calls), clock=self.clock)
        race.run(seconds=0.5, rounds=8)
        return {size: race.median(str(size)) for size in trial.executors}

    def _one_at_a_time(self) -> None:
        """Nothing is stable at the callers' size: executions of one sample have no companions."""
        tried: set[str] = set()
        for before in [trial for trial in self.trials if trial.outcome == UNSTABLE]:
            candidate = before.candidate.at(batch=1, streams=1)
            if candidate.kind in tried or before.candidate.configuration.batch == 1 or self._left(_JUDGED) <= 0:
                continue
            tried.add(candidate.kind)
            trial = self._begin(candidate, 1.0)
            if trial is not None and trial.running:
                self._race([trial], rounds=6, seconds=2.0)
                self._test(trial)
                if trial.outcome == VERIFIED:
                    return

    def _finish(self) -> None:
        """The last race: plain beside what is verified; only a sure winner takes plain's place."""
        finalists = [trial for trial in self._ranked() if trial.outcome == VERIFIED][:3]
        if finalists:
            self._say("last race", 0, None)
            before = finalists[0].speedup or 1.0
            race = self._race(finalists, rounds=_MANY_ROUNDS, seconds=max(self._left(), 1.0))
            self._rescale(finalists, (finalists[0].speedup or before) / before)
            for trial in sorted(finalists, key=lambda trial: self._behind[id(trial)]):
                if race.surely_faster(str(id(trial)), PLAIN, len(finalists)):
                    self.chosen = trial
                    break
            self._measure_sizes(finalists, race)
        for trial in self.trials:
            if not trial.outcome:
                trial.outcome = UNTESTED  # it was timed, and others were faster
            if trial is not self.chosen:
                trial.close()

    def _rescale(self, finalists: Sequence[Trial], factor: float) -> None:
        """Bring the figures of those who left earlier to the last race's: the leader took part in both."""
        for trial in self.trials:
            if trial not in finalists and trial.speedup is not None:
                trial.speedup *= factor

    def _measure_sizes(self, finalists: Sequence[Trial], race: Race) -> None:
        """Seconds of one call at each of the callers' sizes, for the record: of one size the last race has them."""
        for size in self.subject.sizes:
            if len(self.subject.sizes) > 1:
                calls: dict[str, Callable[[], object]] = {PLAIN: self.subject.plain(size)}
                for trial in finalists:
                    calls[str(id(trial))] = self._call(trial, size)
                race = Race(calls, keep=tuple(calls), clock=self.clock)
                race.run(seconds=max(0.5, self._left() / 4), rounds=10)
            self.plain_seconds[size] = race.median(PLAIN)
            for trial in finalists:
                trial.seconds[size] = race.median(str(id(trial)))

    def _begin(self, candidate: Candidate, share: float) -> Trial | None:
        """Build a candidate, if the budget allows for it."""
        operators = self._operators()
        estimate = build_estimate(candidate.backend.name, operators)
        if estimate > self._left(share) and self.trials:
            if not any(trial.candidate.kind == candidate.kind for trial in self.trials):
                reason = (
                    f"not tried: its build takes about {estimate:.0f} s, {max(self._left(share), 0):.0f} s were left"
                )
                self.trials.append(Trial(candidate, outcome=UNTESTED, reason=reason))
            return None
        known = {trial.candidate.kind: trial for trial in self.trials}
        trial = started(self.subject, candidate, known, self.clock)
        if trial.outcome != FAILED or candidate.kind not in known:
            self.trials.append(trial)
        return trial

    def _race(self, trials: Sequence[Trial], *, rounds: int, seconds: float) -> Race:
        calls: dict[str, Callable[[], object]] = {PLAIN: self._weighted(self.subject.plain)}
        for trial in trials:
            name = str(id(trial))
            calls[name] = self._weighted(lambda size, trial=trial: self._call(trial, size))  # type: ignore[misc]
            try:
                calls[name]()
            except Exception as error:  # noqa: BLE001 - what fails when it runs is out, and said
                trial.exclude(FAILED, f"fails when it runs: {type(error).__name__}: {error}".splitlines()[0])
                del calls[name]
        race = Race(calls, keep=(PLAIN,), clock=self.clock)
        race.run(seconds=max(seconds, 0.0), rounds=rounds)
        for trial in trials:
            name = str(id(trial))
            if name in calls:
                self._behind[id(trial)] = race.ratio(name, PLAIN)
                trial.speedup = race.ratio(PLAIN, name)
        return race

    def _call(self, trial: Trial, size: int) -> Callable[[], object]:
        """What the user would call: the predictor itself."""
        predictor, batch = self._predictor(trial), self._batches[size]
        return lambda: predictor.predict(batch)

    def _predictor(self, trial: Trial) -> OptimizedPredictor:
        if id(trial) not in self._predictors:
            self._predictors[id(trial)] = trial.predictor(self.subject, stable=self.settings.stable)
        return self._predictors[id(trial)]

    def _weighted(self, call_at: Callable[[int], Callable[[], object]]) -> Callable[[], object]:
        """One call that runs every size of the callers as often as makes them weigh alike for plain."""
        calls = [(call_at(size), repeats) for size, repeats in self._repeats.items()]
        if len(calls) == 1:
            return calls[0][0]

        def run() -> None:
            for call, repeats in calls:
                for _ in range(repeats):
                    call()

        return run

    def _running(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.running]

    def _ranked(self) -> list[Trial]:
        timed = [trial for trial in self._running() if id(trial) in self._behind]
        return sorted(timed, key=lambda trial: self._behind[id(trial)])

    def has_batch_axis(self) -> bool:
        """Whether any input counts samples; otherwise one execution runs the whole input."""
        return any(axis is not None for axis in self.subject.program.input_axes)

    def _operators(self) -> int:
        exported = self.subject.program.exported
        return 100 if exported is None else sum(node.op == "call_function" for node in exported.graph.nodes)

    def _say(self, stage: str, done: int, total: int | None) -> None:
        best = min((self._behind[id(trial)] for trial in self._running() if id(trial) in self._behind), default=None)
        so_far = "" if best is None or best >= 1 else f" (best so far {1 / best:.1f}x)"
        self.progress(stage + so_far, done, total)
