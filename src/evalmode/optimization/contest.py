"""Trials beside plain `eval()`, in one race that goes on for the whole search: each is called as the user would."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from evalmode.errors import ModelRunError
from evalmode.optimization.race import Race
from evalmode.optimization.subject import Subject
from evalmode.optimization.trial import FAILED, Trial
from evalmode.predictor.optimized import OptimizedPredictor

__all__ = ["PLAIN", "Contest"]

PLAIN = "plain eval()"
_MOST_REPEATS = 64
_LONG = 0.5  # seconds of a call: the first is hardly slower than others
_ANEW = 3  # rounds of a trial whose executions have changed


@dataclass
class Contest:
    """The race of a search. Every trial is timed as a predictor, at every batch size of the callers.

    `plain_seconds` is one call of plain at each of those sizes.
    """

    subject: Subject
    stable: bool
    clock: Callable[[], float] = time.perf_counter
    plain_seconds: dict[int, float] = field(default_factory=dict)
    _batches: dict[int, Any] = field(default_factory=dict)
    _repeats: dict[int, int] = field(default_factory=dict)
    _predictors: dict[Trial, OptimizedPredictor] = field(default_factory=dict)
    _entered: dict[str, Trial] = field(default_factory=dict)
    _race: Race = field(default_factory=lambda: Race({}, keep=(PLAIN,)))

    def prepare(self) -> None:
        """Batches of the callers' sizes, and how often each is run so that all weigh alike.

        Raises:
            ModelRunError: the model fails at one of these sizes.
        """
        for size in self.subject.sizes:
            self._batches[size] = self.subject.batch(size)
            run = self.subject.plain(size)
            begin = self.clock()
            try:
                run()
            except Exception as error:
                raise ModelRunError(
                    f"the model fails on a batch of {size}: {type(error).__name__}: {error}",
                    expected="a model that takes the batch sizes of its callers",
                    fix="batch_sizes=[...]   # those that it takes",
                ) from error
            took = self.clock() - begin
            if took < _LONG:
                begin = self.clock()
                run()
                took = self.clock() - begin
            self.plain_seconds[size] = max(took, 1e-9)
        longest = max(self.plain_seconds.values())
        self._repeats = {
            size: max(1, min(_MOST_REPEATS, round(longest / seconds))) for size, seconds in self.plain_seconds.items()
        }
        self._race.clock = self.clock
        self._race.enter(PLAIN, self._weighted(self.subject.plain))

    @property
    def sample_seconds(self) -> float:
        """What one sample costs plain, at the size where it costs least."""
        return min(seconds / size for size, seconds in self.plain_seconds.items())

    @property
    def plain_call_seconds(self) -> float:
        """What plain takes in one round."""
        return sum(self._repeats[size] * seconds for size, seconds in self.plain_seconds.items())

    def enter(self, trials: Iterable[Trial]) -> None:
        """More trials for the race; one that fails when it runs is out, and says why."""
        for trial in trials:
            call = self._weighted(lambda size, trial=trial: self._call(trial, size))  # type: ignore[misc]
            begin = self.clock()
            try:
                call()
            except Exception as error:  # noqa: BLE001 - whatever it raises excludes it
                trial.exclude(FAILED, f"fails when it runs: {type(error).__name__}: {error}".splitlines()[0])
            else:
                self._race.enter(_name(trial), call, self.clock() - begin)
                self._entered[_name(trial)] = trial

    def run(self, seconds: float, *, rounds: int, least: int, among: Iterable[Trial] | None = None) -> None:
        """Race for about so many seconds; `least` rounds are run whatever they cost. Who is out of the running leaves.

        With `among` these run alone, without plain.
        """
        for name, trial in self._entered.items():
            if not trial.running:
                self._race.left.setdefault(name, self._race.rounds)
        names = None if among is None else [_name(trial) for trial in among if trial.running]
        self._race.run(seconds=max(seconds, 0.0), rounds=rounds, least=least, among=names)

    def round_seconds(self, trials: Iterable[Trial], *, plain: bool = True) -> float:
        """About how long a round of these trials takes, with plain or without."""
        return self._race.round_seconds([*([PLAIN] if plain else []), *map(_name, trials)])

    def only(self, trials: Iterable[Trial]) -> None:
        """Go on with these alone; who had left for being slower comes back."""
        wanted = set(map(_name, trials))
        for name in [name for name in self._race.contestants if name != PLAIN]:
            if name in wanted:
                self._race.left.pop(name, None)
            else:
                self._race.left.setdefault(name, self._race.rounds)
        self._race.keep = (PLAIN, *wanted)

    def timed(self, trial: Trial) -> bool:
        """Whether there is a figure of it."""
        return bool(self._race.times.get(_name(trial)))

    def behind(self, trial: Trial) -> float:
        """How many times longer than plain a trial takes."""
        return self._standings()[_name(trial)]

    def speedup(self, trial: Trial) -> float:
        """How many times longer than a trial plain takes."""
        return 1 / self.behind(trial)

    def ahead(self, trial: Trial, other: Trial) -> float:
        """How many times longer `other` takes than `trial`."""
        return self.behind(other) / self.behind(trial)

    def ranked(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those that were timed, the fastest first."""
        standings = self._standings()
        return sorted((trial for trial in trials if self.timed(trial)), key=lambda trial: standings[_name(trial)])

    def _standings(self) -> dict[str, float]:
        """What each trial takes, as a share of plain.

        Trials are compared with each other in the rounds that they ran in together; how plain compares is taken from
        the one that ran beside it most often. Plain itself is the noisiest of all: it runs on all threads.
        """
        found = self._race.standings(without=PLAIN)
        if not found:
            return found
        times = self._race.times
        anchor = max(found, key=lambda name: (len(times[name].keys() & times[PLAIN].keys()), -found[name]))
        scale = self._race.ratio(anchor, PLAIN) / found[anchor]
        return {name: standing * scale for name, standing in found.items()}

    def surely_faster(self, trial: Trial, comparisons: int) -> bool:
        """Whether it beats plain at 1 % shared by so many comparisons, over all rounds that both ran."""
        return self._race.surely_faster(_name(trial), PLAIN, comparisons)

    def rounds_beside_plain(self, trial: Trial) -> int:
        """In how many rounds both ran."""
        return len(self._race.times[_name(trial)].keys() & self._race.times[PLAIN].keys())

    def measure_sizes(self, trials: Iterable[Trial], seconds: float) -> None:
        """Seconds of one call at each of the callers' sizes, for the record: of one size the race has them."""
        finalists = list(trials)
        if len(self.subject.sizes) == 1:
            (size,) = self.subject.sizes
            self.plain_seconds[size] = self._race.median(PLAIN)
            for trial in finalists:
                trial.seconds[size] = self._race.median(_name(trial))
            return
        for size in self.subject.sizes:
            calls: dict[str, Callable[[], object]] = {PLAIN: self.subject.plain(size)}
            calls |= {_name(trial): self._call(trial, size) for trial in finalists}
            race = Race(calls, keep=tuple(calls), clock=self.clock)
            race.run(seconds=max(0.2, seconds / len(self.subject.sizes)), rounds=10, least=3)
            self.plain_seconds[size] = race.median(PLAIN)
            for trial in finalists:
                trial.seconds[size] = race.median(_name(trial))

    def predictor(self, trial: Trial) -> OptimizedPredictor:
        """What the user would run."""
        if trial not in self._predictors:
            self._predictors[trial] = trial.predictor(self.subject, stable=self.stable)
        return self._predictors[trial]

    def renew(self, trial: Trial) -> None:
        """Its executions have changed: another predictor, timed from the next round on."""
        self._predictors.pop(trial, None)
        if self.timed(trial):  # what the other took says nothing of this one
            self._race.enter(_name(trial), self._race.contestants[_name(trial)])
            self._race.run(0, rounds=_ANEW, least=_ANEW, among=[PLAIN, _name(trial)])

    def _call(self, trial: Trial, size: int) -> Callable[[], object]:
        batch = self._batches[size]
        return lambda: self.predictor(trial).predict(batch)

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


def _name(trial: Trial) -> str:
    return f"{trial.name} {id(trial)}"
