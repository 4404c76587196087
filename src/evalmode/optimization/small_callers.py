"""A second execution size beside the callers' largest: for those who come with few samples."""

from __future__ import annotations

import functools
from collections.abc import Callable

from evalmode.optimization.judge import Judge
from evalmode.optimization.race import Race
from evalmode.optimization.subject import Subject
from evalmode.optimization.trial import Trial

__all__ = ["add_small_size"]

_SAVES = 1.1  # less than this is not worth the memory of another executor


def add_small_size(trial: Trial, subject: Subject, judge: Judge, clock: Callable[[], float]) -> bool:
    """Build executions of the callers' smallest size as well; whether they are kept.

    They are if each sample has the same bits in them as in the large ones, and they save small callers time.
    """
    smallest, size = min(subject.sizes), trial.candidate.configuration.batch
    if trial.add_size(subject, smallest, clock):
        return False
    runs = trial.runs(subject)
    costs = _execution_costs(trial, subject, clock)
    saves = costs[smallest] * _SAVES < costs[size]
    if saves and not judge.instability(runs) and judge.verify({smallest: runs[smallest]}).accepted:
        trial.costs = costs
        return True
    trial.executors.pop(smallest).close()
    return False


def _execution_costs(trial: Trial, subject: Subject, clock: Callable[[], float]) -> dict[int, float]:
    calls: dict[str, Callable[[], object]] = {}
    for size, executor in trial.executors.items():
        chunk = subject.program.inputs_at(size)
        calls[str(size)] = functools.partial(executor.run, [chunk])
    race = Race(calls, keep=tuple(calls), clock=clock)
    race.run(seconds=0.5, rounds=8, least=3)
    return {size: race.median(str(size)) for size in trial.executors}
