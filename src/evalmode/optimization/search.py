"""The search: build candidates, race them beside plain `eval()`, and let only what passes the gate win.

Quick builds come first (eager last where a call is dear), then variations on the fastest, smaller ones of what is too
heavy, then compilers. Timing is cheap; so the gate and the test of stability go down the list from the fastest, and
their share of the budget is kept free for them. The budget bounds all of it: what was not reached is listed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from evalmode.backends.configuration import Configuration
from evalmode.optimization.candidates import QUICK, Candidate, first_batch, first_round, variations
from evalmode.optimization.contest import PLAIN, Contest
from evalmode.optimization.judge import Judge
from evalmode.optimization.race import FEWEST_FOR_T
from evalmode.optimization.search_settings import SearchSettings
from evalmode.optimization.shares import DECISIVE, for_judging, for_the_end, for_the_judge
from evalmode.optimization.small_callers import add_small_size
from evalmode.optimization.subject import Subject
from evalmode.optimization.trial import (
    FAILED,
    REJECTED,
    UNSTABLE,
    UNTESTED,
    VERIFIED,
    Trial,
    likely_seconds,
    started,
)
from evalmode.optimization.weighing import Scales

__all__ = ["PLAIN", "Search", "SearchSettings"]

_ROUNDS, _LAST_ROUNDS, _FEWEST_ROUNDS = 12, 40, 3  # the fewest of each stage, if there is time for them
_MORE, _CLEARLY = 4, 0.9  # pairs of rounds more, for one that takes at most this share of plain's time
_NO_GAIN = 0.97  # of plain's time: less is not worth its judging
_FRONT, _CLOSE, _VARIATIONS = 5, 1.2, 5
_SLOW, _LONG, _WORTH_VARYING = 0.25, 1.0, 1.35  # seconds of plain's call, and a share of the best
_SAME_KERNELS = 1.3  # Inductor so far behind: AOTInductor, whose kernels it shares, is not built

Progress = Callable[[str, int, int | None], object]


@dataclass
class Search:
    """One search. `trials` are in the order in which they were begun; `chosen` is None where plain `eval()` stays.

    `judge_within(seconds)` prepares what candidates are judged by, in about that time: it is asked once, when the first
    candidate is to be judged.
    """

    subject: Subject
    settings: SearchSettings
    judge_within: Callable[[float], Judge]
    progress: Progress
    clock: Callable[[], float] = time.perf_counter
    started_at: float | None = None
    trials: list[Trial] = field(default_factory=list)
    chosen: Trial | None = None
    notes: list[str] = field(default_factory=list)
    contest: Contest = field(init=False)
    scales: Scales = field(init=False)
    _judge: Judge | None = None
    _kept_free: float = 0.0  # seconds that building and racing leave alone: those for judging, and for the last rounds
    _judging: float = 0.0
    _slow: bool = False  # a call of plain is dear
    _end: float = 0.0

    def __post_init__(self) -> None:
        self.contest = Contest(self.subject, self.settings.stable, self.clock)
        self.scales = Scales(self.subject, self.settings.memory)

    def run(self) -> None:
        """Search until the budget is used or nothing is left to try."""
        self.started_at = self.clock() if self.started_at is None else self.started_at
        self.contest.prepare()
        self._end = for_the_end(self.settings.budget, self.contest.plain_call_seconds)
        self._judging = for_judging(self.settings.budget, self.contest.sample_seconds, self.settings.answers)
        self._kept_free = self._judging + self._end
        self._slow = self.contest.plain_call_seconds > _SLOW
        self.scales.calls = 1 if max(self.contest.plain_seconds.values()) > _LONG else 2
        candidates = self._candidates()
        quick = [candidate for candidate in candidates if candidate.backend.name in QUICK]
        eager = [candidate for candidate in quick if candidate.backend.name == "eager"] if self._slow else []
        self._stage([candidate for candidate in quick if candidate not in eager])
        if not any(trial.running for trial in self.trials):
            self._stage(eager)
        self._vary()
        for candidate in candidates:
            if candidate.backend.name not in QUICK:
                self._stage([candidate])
        self._vary()
        self._settle()
        if not self._judge_down_the_list() and not self._smaller_executions() and self.left > self._judging:
            self._stage([candidate for candidate in eager if candidate.form])
            self._judge_down_the_list()
        self._finish()
        if eager and not any(trial.candidate.backend.name == "eager" for trial in self.trials):
            reason = "not tried: calls are long, and those went first that gain more"
            self.trials.append(Trial(eager[0], outcome=UNTESTED, reason=reason))

    @property
    def used(self) -> float:
        """The seconds since the search began."""
        return self.clock() - (self.started_at or 0.0)

    @property
    def left(self) -> float:
        """The seconds left of the budget."""
        return self.settings.budget - self.used

    @property
    def judge(self) -> Judge:
        """What candidates are judged by."""
        if self._judge is None:
            self._say("answers in fp64", 0, None)
            self._judge = self.judge_within(for_the_judge(self.settings.budget, self.left))
        return self._judge

    def _candidates(self) -> list[Candidate]:
        settings = self.settings
        dear = self.contest.sample_seconds if self.subject.program.dynamic else 0.0  # else each size is an export
        batch = first_batch(self.subject.sizes, dear, self.subject.exported.smallest) if self.has_batch_axis() else 1
        shape = Configuration(backend="", batch=batch, threads=settings.threads, device=settings.device)
        forms = [*self.subject.forms, *(["channels-last"] if self.subject.may_be_channels_last else [])]
        return first_round(settings.backends, settings.precisions, shape, forms)

    def _stage(self, candidates: Iterable[Candidate]) -> None:
        """Build, as far as the time allows, then race."""
        wanted = list(candidates)
        begun = []
        for number, candidate in enumerate(wanted):
            self._say(f"building {candidate.name}", number, len(wanted))
            trial = self._begin(candidate)
            if trial is not None and trial.running:
                begun.append(trial)
        self._race(begun)

    def _race(self, newcomers: list[Trial]) -> None:
        """All who are left; where a call is dear, newcomers beside the one in front: its distance to plain is known."""
        if not newcomers:
            return
        seconds = 0.3 * max(self.left - self._kept_free, 0.0)
        affordable = int(seconds / ((1 + len(newcomers)) * self.contest.plain_call_seconds))
        least = min(max(1, affordable), _FEWEST_ROUNDS)
        leaders = self._ranked()[:1] if self._slow else []
        self.contest.enter(newcomers)
        if any(trial.running for trial in newcomers):
            self.contest.run(seconds, rounds=_ROUNDS, least=least, among=[*leaders, *newcomers] if leaders else None)

    def _vary(self) -> None:
        """Other micro-batches, threads and streams for the two back ends in front, in turns, the likeliest first.

        Who is too heavy leaves, and smaller executions of it are tried.
        """
        ranked, spare = self._ranked(), self.left - self._kept_free
        if not ranked or not self.has_batch_axis() or spare < 2 * self.contest.plain_call_seconds:
            return
        varied = {trial.candidate.kind for trial in self.trials if trial.candidate.varied}
        each: dict[str, list[Candidate]] = {}
        best = self.contest.behind(ranked[0])
        for trial in ranked:
            kind = trial.candidate.kind
            if len(each) == 2 or self.contest.behind(trial) > _WORTH_VARYING * best or kind in varied or kind in each:
                continue
            loading = trial.build_seconds + 2 * self.contest.plain_call_seconds
            if self.scales.limit is not None and self.contest.behind(trial) < _NO_GAIN and loading < spare:
                self.scales.exclude_if_too_heavy(trial)
            each[kind] = variations(
                trial.candidate, self.subject.sizes, self.settings.threads, smaller=trial.too_heavy
            )[:_VARIATIONS]
        wanted = [found[place] for place in range(_VARIATIONS) for found in each.values() if place < len(found)]
        for start in range(0, len(wanted), 4):
            self._stage(wanted[start : start + 4])

    def _settle(self) -> None:
        """Those in front once more, without plain: they differ by less than one stage tells."""
        ranked = self._ranked()
        front = [trial for trial in ranked[:_FRONT] if self.contest.ahead(ranked[0], trial) < _CLOSE]
        if len(front) > 1:
            self._say("those in front once more", 0, None)
            seconds = min(max(self.left - self._kept_free, 0.0), 0.15 * self.settings.budget)
            fitting = int(seconds / max(self.contest.round_seconds(front, plain=False), 1e-9))
            if fitting:
                self.contest.run(seconds, rounds=min(_ROUNDS, fitting), least=1, among=front)

    def _judge_down_the_list(self) -> bool:
        """From the fastest on, until three are accepted, or one and time is short, or plain comes next; if any is."""
        accepted = 0
        last = 0.0
        for trial in self._ranked():
            if (accepted and (accepted >= 3 or self.left < self._end + last)) or (last and self.left < 0):
                break
            time_for_it = self.left > (0 if self._judge else self._judging)
            if self.contest.behind(trial) > (_NO_GAIN if time_for_it else _CLEARLY):
                break  # it cannot win; or it hardly can, and there is no time for that
            self._say(f"verifying {trial.name}", accepted, None)
            begin = self.clock()
            self._test(trial)
            last = self.clock() - begin
            accepted += trial.outcome == VERIFIED
        return accepted > 0

    def _test(self, trial: Trial) -> None:
        """Memory, which takes least time, then the gate and stability: what fails one of them is out."""
        self.scales.exclude_if_too_heavy(trial)
        if trial.running and self.holds(trial):
            self.scales.exclude_if_too_heavy(trial)  # with the model beside it, it may be
        if trial.running:
            trial.outcome = VERIFIED
            if self.settings.stable:
                self._serve_small_callers(trial)

    def holds(self, trial: Trial) -> bool:
        """Whether a trial passes the gate and, where that is asked for, is stable; if not, it is out, and says why."""
        trial.verification = self.judge.verify(trial.runs(self.subject), self.contest.predictor(trial))
        while trial.verification.only_non_finite and trial.see_to_non_finite(self.subject):
            self.contest.renew(trial)
            trial.verification = self.judge.verify(trial.runs(self.subject), self.contest.predictor(trial))
        if not trial.verification.accepted:
            trial.exclude(REJECTED, f"rejected: {trial.verification.reason}")
            return False
        problem = self.judge.instability(trial.runs(self.subject)) if self.settings.stable else ""
        if problem:
            trial.exclude(UNSTABLE, f"unstable: {problem}")
        return not problem

    def _serve_small_callers(self, trial: Trial) -> None:
        """A second execution size for callers of few samples, if it gives the same bits and saves them time."""
        smallest, shape = min(self.subject.sizes), trial.candidate.configuration
        if smallest > shape.batch // 2 or shape.streams > 1 or self.left <= trial.build_seconds * 1.5 + self._end:
            return
        if add_small_size(trial, self.subject, self.judge, self.clock):
            before = trial.peak_bytes
            self.scales.measure(trial)
            if self.scales.excess(trial):
                trial.remove_size(smallest)
                trial.peak_bytes = before
            else:
                self.contest.renew(trial)

    def _smaller_executions(self) -> bool:
        """Half of a batch needs less memory than all of it, and one sample alone has no companions; if that helps."""
        self._kept_free = self._end
        for before in [trial for trial in self.trials if trial.outcome == UNSTABLE or trial.too_heavy]:
            batch = before.candidate.configuration.batch
            for size in (batch // 2, 1) if before.too_heavy and batch > 3 else (1,):
                wanted = before.candidate.at(batch=size, streams=1)
                again = batch == 1 or any(trial.candidate == wanted for trial in self.trials)
                trial = None if again else self._begin(wanted)
                if trial is None or not trial.running:
                    continue
                self._race([trial])
                if trial.running and self.contest.behind(trial) <= _NO_GAIN:
                    self._test(trial)
                if trial.outcome == VERIFIED:
                    return True
        return False

    def _finish(self) -> None:
        """The last rounds: plain beside what is verified; only a sure winner takes plain's place."""
        verified = [trial for trial in self._ranked() if trial.outcome == VERIFIED]
        finalists = [trial for trial in verified if self.contest.behind(trial) < 1][:3]
        if finalists:
            self._say("last race", 0, None)
            self.contest.only(finalists)
            affordable = int(max(self.left, 0.0) / max(self.contest.round_seconds(finalists), 1e-9))
            known = min(map(self.contest.rounds_beside_plain, finalists))
            least = max(1, FEWEST_FOR_T - known, min(affordable, DECISIVE - known))
            self.contest.run(self.left, rounds=_LAST_ROUNDS, least=least)
            looks = self._decide(finalists)
            ranked = self.contest.ranked(finalists)
            sure = (trial for trial in ranked if self.contest.surely_faster(trial, len(finalists) * looks))
            self.chosen = next(sure, None)
            self.contest.measure_sizes(finalists, min(max(self.left, 0.0), 0.1 * self.settings.budget))
        for trial in filter(self.contest.timed, self.trials):
            trial.speedup = self.contest.speedup(trial)
        for trial in self.trials:
            if trial is not self.chosen:
                trial.lose(self.chosen)
                trial.close()

    def _decide(self, finalists: list[Trial]) -> int:
        """Some more rounds where the winner is clearly ahead and too few rounds say so: they cost less than plain.

        Who looks often is right by chance: each look takes half of what is left of the level. Tells the last's divisor.
        """
        leader = self.contest.ranked(finalists)[0]
        self.contest.only([leader])
        share = 2
        for _ in range(_MORE):
            if self.contest.behind(leader) > _CLEARLY or self.contest.surely_faster(leader, len(finalists) * share):
                break
            self.contest.run(0, rounds=2, least=2)
            share *= 2
        self.contest.only(finalists)
        return share

    def _begin(self, candidate: Candidate) -> Trial | None:
        """Build a candidate, if the time allows for it."""
        reason = self._not_worth_it(candidate)
        if reason:
            if not candidate.varied and not any(trial.candidate.kind == candidate.kind for trial in self.trials):
                self.trials.append(Trial(candidate, outcome=UNTESTED, reason=reason))
            return None
        if candidate.form and not self.subject.has_form(candidate.form):
            return None
        known = {trial.candidate.kind: trial for trial in self.trials}
        trial = started(self.subject, candidate, known, self.clock)
        if trial.outcome != FAILED or candidate.kind not in known:
            self.trials.append(trial)
        return trial

    def _not_worth_it(self, candidate: Candidate) -> str:
        """Why a candidate is not built; empty where it is."""
        estimate = likely_seconds(candidate, self.trials, self._operators())
        spare, calls = self.left - self._kept_free, 2
        if candidate.backend.name in QUICK and not candidate.varied:  # without these there is nothing to judge
            spare, calls = self.left, 1
        if estimate + calls * self.contest.plain_call_seconds > spare and self.trials:
            return f"not tried: its build takes about {estimate:.0f} s, {max(spare, 0):.0f} s were left"
        ranked = self._ranked()
        for trial in ranked if candidate.backend.name == "aot_inductor" else []:
            behind = self.contest.ahead(ranked[0], trial)
            alike = f"inductor {candidate.configuration.precision}"
            if trial.candidate.kind == alike and behind > _SAME_KERNELS:
                return f"not tried: it shares inductor's kernels, {behind:.1f}x behind"
        return ""

    def _ranked(self) -> list[Trial]:
        return self.contest.ranked(trial for trial in self.trials if trial.running)

    def has_batch_axis(self) -> bool:
        """Whether any input counts samples; otherwise one execution runs the whole input."""
        return any(axis is not None for axis in self.subject.program.input_axes)

    def _operators(self) -> int:
        exported = self.subject.program.exported
        return 100 if exported is None else sum(node.op == "call_function" for node in exported.graph.nodes)

    def _say(self, stage: str, done: int, total: int | None) -> None:
        ranked = self._ranked()
        best = self.contest.behind(ranked[0]) if ranked else 1.0
        so_far = "" if best >= 1 else f" (best so far {1 / best:.1f}x)"
        self.progress(stage + so_far, done, total)
