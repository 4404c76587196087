"""The race: a clock of the test's own, so that no timing of this machine decides anything."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evalmode.optimization.race import Race, sign_test, t_test


class Clock:
    """Time that passes only when a contestant runs; `drift` slows the whole machine down and up again."""

    def __init__(self, seed: int = 0, noise: float = 0.0, drift: float = 0.0) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.noise = noise
        self.drift = drift
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def contestant(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            machine = 1 + self.drift * (1 + math.sin(self.now / 3))
            self.now += seconds * machine * (1 + self.noise * self.random.random())

        return run


def race_of(clock: Clock, keep: tuple[str, ...] = (), **seconds: float) -> Race:
    return Race({name: clock.contestant(name, each) for name, each in seconds.items()}, keep=keep, clock=clock)


def test_the_fastest_wins_and_losers_leave_early() -> None:
    clock = Clock(noise=0.05)
    race = race_of(clock, keep=("plain",), plain=0.02, better=0.012, best=0.011, hopeless=0.2)
    race.run(seconds=5)
    assert race.fastest() == "best"
    assert race.left["hopeless"] == 2
    assert "better" in race.left
    assert "plain" not in race.left
    assert len(race.times["plain"]) == len(race.times["best"]) > len(race.times["better"])


def test_drift_of_the_machine_cancels() -> None:
    clock = Clock(noise=0.02, drift=2.0)
    race = race_of(clock, keep=("plain",), plain=0.0205, candidate=0.0195)
    race.run(seconds=20)
    assert race.ratio("plain", "candidate") == pytest.approx(0.0205 / 0.0195, rel=0.03)
    assert race.surely_faster("candidate", "plain")


def test_equals_are_not_told_apart() -> None:
    told = 0
    for seed in range(60):
        race = race_of(Clock(seed, noise=0.3), keep=("a", "b"), a=0.01, b=0.01)
        race.run(seconds=3)
        told += race.surely_faster("a", "b") or race.surely_faster("b", "a")
    assert told <= 5  # 1 % on either side: 1.2 expected


def test_every_contestant_goes_first_in_turn() -> None:
    clock = Clock()
    race = race_of(clock, keep=("a", "b", "c"), a=0.05, b=0.05, c=0.05)
    race.run(seconds=0, least=6)
    firsts = clock.calls[-18::3]
    assert sorted(firsts) == ["a", "a", "b", "b", "c", "c"]


def test_short_calls_are_repeated() -> None:
    clock = Clock()
    race = race_of(clock, keep=("quick",), quick=0.00002, slow=0.00004)
    race.run(seconds=1)
    assert race.median("quick") == pytest.approx(0.00002)
    assert clock.calls.count("quick") > 50 * len(race.times["quick"])


def test_the_time_given_is_kept() -> None:
    clock = Clock()
    race = race_of(clock, keep=("a", "b"), a=0.1, b=0.1)
    race.run(seconds=4)
    assert 4 <= clock.now <= 4 + 4 * 0.2 + 0.4
    before = len(race.times["a"])
    race.run(seconds=2)
    assert len(race.times["a"]) > before


def test_a_lone_contestant_is_still_timed() -> None:
    race = race_of(Clock(), plain=0.01)
    race.run(seconds=1)
    assert race.fastest() == "plain"
    assert race.median("plain") == pytest.approx(0.01)


@settings(max_examples=60)
@given(wins=st.integers(0, 60), losses=st.integers(0, 60))
def test_the_sign_test_is_scipys(wins: int, losses: int) -> None:
    if wins + losses == 0:
        assert sign_test(0, 0) == 1.0
    else:
        expected = stats.binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue
        assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=100)
@given(values=st.lists(st.floats(-5, 5).map(lambda value: round(value, 3)), min_size=2, max_size=30))
def test_the_t_test_is_scipys(values: list[float]) -> None:
    if len(set(values)) == 1:
        assert t_test(values) == (0.0 if values[0] < 0 else 1.0)
    else:
        expected = stats.ttest_1samp(values, 0, alternative="less").pvalue
        assert t_test(values) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_of_one_value_the_t_test_says_nothing() -> None:
    assert t_test([-3.0]) == t_test([]) == 1.0


@pytest.mark.parametrize(("faster", "sure"), [(0.8, True), (0.995, False)])
def test_few_rounds_are_enough_for_a_clear_winner(faster: float, sure: bool) -> None:
    """Long calls leave no time for the seven rounds of a sign test."""
    race = race_of(Clock(seed=3, noise=0.05), keep=("plain", "fast"), plain=4.0, fast=4.0 * faster)
    race.run(seconds=0, least=3)
    assert not race.surely_faster("fast", "plain", comparisons=3)
    race.run(seconds=0, least=1)
    assert len(race.times["fast"]) == 4
    assert race.surely_faster("fast", "plain", comparisons=3) is sure
    assert not race.surely_faster("plain", "fast", comparisons=3)


def test_who_enters_later_is_compared_over_the_rounds_that_both_ran() -> None:
    clock = Clock(drift=1.0)
    race = race_of(clock, keep=("plain",), plain=0.02, first=0.015)
    race.run(seconds=0, least=3)
    race.enter("second", clock.contestant("second", 0.01))
    race.run(seconds=0, least=4)
    assert sorted(race.times["plain"]) == list(range(7))
    assert sorted(race.times["second"]) == [3, 4, 5, 6]
    assert race.ratio("plain", "second") == pytest.approx(2.0, rel=0.01)
    assert race.fastest() == "second"


def test_a_contestant_that_enters_again_begins_anew() -> None:
    clock = Clock()
    race = race_of(clock, keep=("plain", "other"), plain=0.02, other=0.03)
    race.run(seconds=0, least=3)
    race.enter("other", clock.contestant("other", 0.01))
    race.run(seconds=0, least=3)
    assert race.ratio("plain", "other") == pytest.approx(2.0)


def test_who_is_clearly_behind_in_every_round_leaves_after_three() -> None:
    race = race_of(Clock(noise=0.05), keep=("plain",), plain=1.0, best=0.5, behind=0.7, near=0.52)
    race.run(seconds=0, least=4)
    assert race.left == {"behind": 3}


def test_slow_calls_are_not_repeated_to_count_them() -> None:
    clock = Clock()
    race = race_of(clock, keep=("a", "b"), a=0.5, b=0.5)
    race.run(seconds=0, least=2)
    assert clock.calls.count("a") == 3  # a warm-up and two rounds


def test_standings_compare_those_who_never_met() -> None:
    """In slow rounds everybody is slow: who ran in those alone is not behind for it."""
    clock = Clock(noise=0.02)
    race = race_of(clock, keep=("plain", "bridge", "early"), plain=0.1, bridge=0.05, early=0.06)
    race.run(seconds=0, least=8)
    race.left["early"] = race.rounds
    clock.drift = 3.0
    race.enter("late", clock.contestant("late", 0.04))
    race.keep = ("plain", "bridge", "late")
    race.run(seconds=0, least=8)
    found = race.standings(without="plain")
    assert set(found) == {"bridge", "early", "late"}
    assert found["early"] / found["late"] == pytest.approx(1.5, rel=0.05)
    assert found["early"] / found["bridge"] == pytest.approx(1.2, rel=0.05)


def test_some_may_race_among_themselves() -> None:
    clock = Clock()
    race = race_of(clock, keep=("plain",), plain=0.1, one=0.05, other=0.052)
    race.run(seconds=0, least=2)
    before = len(race.times["plain"])
    race.run(seconds=0, least=5, rounds=5, among=["one", "other"])
    assert len(race.times["plain"]) == before
    assert len(race.times["one"]) == len(race.times["other"]) == before + 5
    assert not race.left


def test_a_short_call_runs_untimed_for_a_while_first() -> None:
    """Threads of whoever ran before spin for some milliseconds: that is not at the next one's cost."""
    clock = Clock()
    race = race_of(clock, keep=("short", "long"), short=0.001, long=0.1)
    race.run(seconds=0, least=1, rounds=1)
    counted = {name: clock.calls.count(name) for name in ("short", "long")}
    assert counted["short"] >= 2 * 8  # eight of a millisecond are timed, and as many are not
    assert counted["long"] == 2  # one to know how long it is, one that is timed
