"""Which of several ways to compute the same thing is fastest, on a machine that is never quiet.

Contestants run in rounds, interleaved and in changing order, so that drift of the machine reaches all alike. What
decides is the ratio within a round, never a time of its own. Who is surely behind leaves early.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["Race", "sign_test", "t_test"]

LEAST_ROUNDS = 6
SLICE_SECONDS = 0.008
"""One measurement repeats the call until it lasts this long, as long again untimed before it: after a rest, and after
the others, nothing of it is in the caches any more."""
_LONG_SECONDS, _REST_SECONDS = 0.04, 0.03  # a call so long is not repeated; ONNX Runtime's threads spin so long
HOPELESS = 2.5  # a contestant so many times slower in its first two rounds is not given a third
CLEARLY = 1.2  # nor is one a fourth that was slower by this in each of three
MARGIN = 1.02  # nobody leaves for a difference that nobody would notice
LEVEL = 0.01
FEWEST_FOR_T = 4
"""Rounds that the t test needs: of fewer, one lucky one says too much."""
_KNOWN_SECONDS = 0.5  # a first call is slower than others, but hardly by so much
_POLISHED = 8  # times over the table: it settles in a few


def sign_test(wins: int, losses: int) -> float:
    """The one-sided p-value of at least `wins` wins if both sides were equally likely to win a round; ties left out.

    Example:
        >>> sign_test(7, 0)
        0.0078125
        >>> sign_test(0, 0)
        1.0

    Source: Conover, Practical Nonparametric Statistics, section 3.4.
    """
    rounds = wins + losses
    return float(sum(math.comb(rounds, k) for k in range(wins, rounds + 1)) / 2**rounds)


def t_test(values: Sequence[float]) -> float:
    """The one-sided p-value of values so far below zero if they were normal around it.

    Shapes: `n` values, `n >= 2`; of fewer nothing can be said, and 1 is returned.

    Example:
        >>> round(t_test([-1.0, -2.0, -3.0]), 4)
        0.0371

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    if (freedom := len(values) - 1) < 1:
        return 1.0
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    if not error:
        return 0.0 if mean < 0 else 1.0
    angle = math.atan(mean / error / math.sqrt(freedom))
    odd = freedom % 2
    terms = [math.cos(angle) if odd else 1.0]
    for k in range(2 + odd, freedom - 1, 2):
        terms.append(terms[-1] * math.cos(angle) ** 2 * (k - 1) / k)
    inside = math.sin(angle) * sum(terms) if freedom > 1 else 0.0
    return (1 + (2 / math.pi * (angle + inside) if odd else inside)) / 2


@dataclass
class Race:
    """Interleaved timing of `contestants`, calls without arguments, among which `keep` never leave.

    A race may go on after others have entered: who is compared is compared over the rounds that both ran.

    Units: seconds per call.

    Example:
        >>> import time
        >>> race = Race({"slow": lambda: time.sleep(0.004), "fast": lambda: None}, keep=("slow",))
        >>> race.run(seconds=0.2, least=8)
        >>> race.fastest(), race.ratio("slow", "fast") > 1, race.surely_faster("fast", "slow")
        ('fast', True, True)
    """

    contestants: dict[str, Callable[[], object]]
    keep: tuple[str, ...] = ()
    clock: Callable[[], float] = time.perf_counter
    times: dict[str, dict[int, float]] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    _repeats: dict[str, int] = field(default_factory=dict)
    _untimed: dict[str, int] = field(default_factory=dict)

    def enter(self, name: str, call: Callable[[], object], took: float = 0.0) -> None:
        """One more contestant, from the next round on; a name that ran before begins anew.

        `took` is what a first call took, where one was made: a long one need not be made again to know how long it is.
        """
        self.withdraw(name)
        self.contestants[name] = call
        if took > _KNOWN_SECONDS:
            self._measured(name, took)

    def withdraw(self, name: str) -> None:
        """Forget a contestant."""
        for known in (self.contestants, self.times, self.left, self._repeats, self._untimed):
            known.pop(name, None)

    def run(
        self, seconds: float, *, rounds: int = 400, least: int = LEAST_ROUNDS, among: Iterable[str] | None = None
    ) -> None:
        """Go on for about `seconds`: at least `least` rounds and at most `rounds`, counted from now.

        With `among` only these run, whoever has left.
        """
        chosen = None if among is None else list(among)
        start, before = self.clock(), self.rounds
        for name, call in self.contestants.items():
            if name not in self._repeats:
                self._measured(name, self._shortest(call))
        while len(chosen or self._running()) > 1 or self.rounds - before < least:
            ran = self.rounds - before
            if ran >= rounds or (ran >= least and self.clock() - start >= seconds):
                return
            self._round(chosen or self._running())
            if chosen is None:
                self._send_away(self._running())

    def fastest(self) -> str:
        """The contestant with the least median ratio to the others over the rounds that they shared."""
        running = self._running()
        return min(running, key=lambda name: max(self.ratio(name, other) for other in running))

    def ratio(self, first: str, second: str) -> float:
        """How many times longer `first` takes than `second`: the median over the rounds that both ran."""
        pairs = self._pairs(first, second)
        return statistics.median(a / b for a, b in pairs) if pairs else math.nan

    def standings(self, without: str) -> dict[str, float]:
        """What each but one takes, as a share of what the others take, whichever rounds each of them ran in.

        A round that was slow for all was slow for all: what rounds share is taken out before contestants are compared.

        Source: Tukey, Exploratory Data Analysis, chapter 11 (median polish), on logarithms.
        """
        logs = {
            name: {number: math.log(max(seconds, 1e-9)) for number, seconds in times.items()}
            for name, times in self.times.items()
            if times and name != without
        }
        effects = {name: statistics.median(times.values()) for name, times in logs.items()}
        for _ in range(_POLISHED):
            rounds: dict[int, list[float]] = {}
            for name, times in logs.items():
                for number, value in times.items():
                    rounds.setdefault(number, []).append(value - effects[name])
            shared = {number: statistics.median(values) for number, values in rounds.items()}
            effects = {
                name: statistics.median(value - shared[number] for number, value in times.items())
                for name, times in logs.items()
            }
        return {name: math.exp(effect) for name, effect in effects.items()}

    def surely_faster(self, first: str, second: str, comparisons: int = 1) -> bool:
        """Whether `first` beats `second` at 1 % shared by so many comparisons.

        The sign test over rounds says it; of rounds too few for that, the t test on logarithms of ratios.
        """
        pairs = self._pairs(first, second)
        level = LEVEL / max(1, comparisons)
        if len(pairs) >= FEWEST_FOR_T and 0.5 ** len(pairs) > level:
            return t_test([math.log(max(a, 1e-9) / max(b, 1e-9)) for a, b in pairs]) <= level
        return _wins(pairs) <= level

    def median(self, name: str) -> float:
        """The median time of one call."""
        return statistics.median(self.times[name].values())

    def round_seconds(self, names: Iterable[str]) -> float:
        """About how long a round of these contestants takes, from what is known of them."""
        rest = _REST_SECONDS if self.clock is time.perf_counter else 0.0
        return sum(
            rest + self.median(name) * (self._repeats[name] + self._untimed[name])
            for name in names
            if self.times.get(name)
        )

    def _pairs(self, first: str, second: str) -> list[tuple[float, float]]:
        one, other = self.times.get(first, {}), self.times.get(second, {})
        return [(seconds, other[number]) for number, seconds in one.items() if number in other]

    def _measured(self, name: str, seconds: float) -> None:
        self.times[name] = {}
        self._repeats[name] = max(1, min(1000, round(SLICE_SECONDS / max(seconds, 1e-7))))
        self._untimed[name] = self._repeats[name] if seconds < _LONG_SECONDS else 0

    def _shortest(self, call: Callable[[], object]) -> float:
        """About what a call takes; the first one, which warms up, counts only where it is long."""
        begin = self.clock()
        call()
        if (first := self.clock() - begin) > 2 * _LONG_SECONDS:  # nothing to repeat, and no time to spare
            return first
        shortest = math.inf
        for _ in range(3):
            begin = self.clock()
            call()
            shortest = min(shortest, self.clock() - begin)
            if shortest > SLICE_SECONDS:
                break
        return shortest

    def _round(self, running: list[str]) -> None:
        shift = self.rounds % len(running)
        first, *others = running[shift:] + running[:shift]
        for name in [first, *(reversed(others) if self.rounds % 2 else others)]:
            call, repeats = self.contestants[name], self._repeats[name]
            self._rest()
            for _ in range(self._untimed[name]):
                call()
            begin = self.clock()
            for _ in range(repeats):
                call()
            self.times[name][self.rounds] = (self.clock() - begin) / repeats
        self.rounds += 1

    def _rest(self) -> None:
        """Until nobody's threads spin any more: they would be at the next one's cost, on the same cores."""
        if self.clock is time.perf_counter:
            time.sleep(_REST_SECONDS)

    def _send_away(self, running: list[str]) -> None:
        """Losers leave: hopeless ones after two rounds, clear ones after three, others once a sign test says so."""
        best = self.fastest()
        for name in running:
            pairs = self._pairs(name, best)
            if name == best or name in self.keep or len(pairs) < 2:
                continue
            ratios = [a / b for a, b in pairs]
            behind = statistics.median(ratios)
            clearly = len(pairs) >= 3 and min(ratios) > CLEARLY
            surely = _wins([(b, a) for a, b in pairs]) <= LEVEL / len(self.contestants)
            if behind > HOPELESS or clearly or (behind > MARGIN and surely):
                self.left[name] = self.rounds

    def _running(self) -> list[str]:
        return [name for name in self.contestants if name not in self.left]


def _wins(pairs: Iterable[tuple[float, float]]) -> float:
    """The p-value of so many rounds won by the first of each pair."""
    signs = [(a < b) - (a > b) for a, b in pairs]
    return sign_test(signs.count(1), signs.count(-1))
