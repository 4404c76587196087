"""Which of several ways to compute the same thing is fastest, on a machine that is never quiet.

Contestants run in rounds, interleaved and in changing order, so that drift of the machine reaches all alike. What
decides is the ratio within a round, never a time of its own. Who is surely behind leaves early.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

__all__ = ["Race", "sign_test"]

LEAST_ROUNDS = 6
SLICE_SECONDS = (
    0.004  # one measurement repeats the call until it lasts this long: timers and wake-ups cost microseconds
)
HOPELESS = 2.5  # a contestant so many times slower in its first two rounds is not given a third
CLEARLY = 1.2  # nor is one a fourth that was slower by this in each of three
MARGIN = 1.02  # nobody leaves for a difference that nobody would notice
LEVEL = 0.01


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


@dataclass
class Race:
    """Interleaved timing of `contestants`, calls without arguments, among which `keep` never leave.

    A race may go on after others have entered: who is compared is compared over the rounds that both ran.

    Units: seconds per call.

    Example:
        >>> import time
        >>> race = Race({"slow": lambda: time.sleep(0.004), "fast": lambda: None}, keep=("slow",))
        >>> race.run(seconds=0.2)
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

    def enter(self, name: str, call: Callable[[], object]) -> None:
        """One more contestant, from the next round on; a name that ran before begins anew."""
        self.withdraw(name)
        self.contestants[name] = call

    def withdraw(self, name: str) -> None:
        """Forget a contestant."""
        for known in (self.contestants, self.times, self.left, self._repeats):
            known.pop(name, None)

    def run(self, seconds: float, *, rounds: int = 400, least: int = LEAST_ROUNDS) -> None:
        """Go on for about `seconds`: at least `least` rounds and at most `rounds`, counted from now."""
        start, before = self.clock(), self.rounds
        for name, call in self.contestants.items():
            if name not in self._repeats:
                self.times[name] = {}
                self._repeats[name] = self._repeats_of(call)
        while len(self._running()) > 1 or self.rounds - before < least:
            ran = self.rounds - before
            if ran >= rounds or (ran >= least and self.clock() - start >= seconds):
                return
            self._round()

    def fastest(self) -> str:
        """The contestant with the least median ratio to the others over the rounds that they shared."""
        running = self._running()
        return min(running, key=lambda name: max(self.ratio(name, other) for other in running))

    def ratio(self, first: str, second: str) -> float:
        """How many times longer `first` takes than `second`: the median over the rounds that both ran."""
        pairs = self._pairs(first, second)
        return statistics.median(a / b for a, b in pairs) if pairs else math.nan

    def surely_faster(self, first: str, second: str, comparisons: int = 1) -> bool:
        """Whether `first` beats `second` by the sign test over rounds, at 1 % shared by so many comparisons."""
        pairs = self._pairs(first, second)
        wins, losses = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
        return sign_test(wins, losses) <= LEVEL / max(1, comparisons)

    def median(self, name: str) -> float:
        """The median time of one call."""
        return statistics.median(self.times[name].values())

    def round_seconds(self, names: Iterable[str]) -> float:
        """About how long a round of these contestants takes, from what is known of them."""
        return sum(self.median(name) * self._repeats[name] for name in names if self.times.get(name))

    def _pairs(self, first: str, second: str) -> list[tuple[float, float]]:
        one, other = self.times.get(first, {}), self.times.get(second, {})
        return [(seconds, other[number]) for number, seconds in one.items() if number in other]

    def _repeats_of(self, call: Callable[[], object]) -> int:
        """How often one measurement calls; the warm-up is not counted."""
        begin = self.clock()
        call()
        if self.clock() - begin > 10 * SLICE_SECONDS:  # a slow one: nothing to repeat, and no time to spare
            return 1
        shortest = math.inf
        for _ in range(3):
            begin = self.clock()
            call()
            shortest = min(shortest, self.clock() - begin)
            if shortest > SLICE_SECONDS:
                break
        return max(1, min(1000, round(SLICE_SECONDS / max(shortest, 1e-7))))

    def _round(self) -> None:
        running = self._running()
        shift = self.rounds % len(running)
        first, *others = running[shift:] + running[:shift]
        for name in [first, *(reversed(others) if self.rounds % 2 else others)]:
            call, repeats = self.contestants[name], self._repeats[name]
            for _ in range(repeats // 2):  # threads of whoever ran before spin for a while: not at this one's cost
                call()
            begin = self.clock()
            for _ in range(repeats):
                call()
            self.times[name][self.rounds] = (self.clock() - begin) / repeats
        self.rounds += 1
        self._send_away(running)

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
            surely = self.surely_faster(best, name, len(self.contestants))
            if behind > HOPELESS or clearly or (behind > MARGIN and surely):
                self.left[name] = self.rounds

    def _running(self) -> list[str]:
        return [name for name in self.contestants if name not in self.left]
