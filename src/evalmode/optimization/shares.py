"""How the budget of a search is shared out: what judging and the last rounds need is kept free for them."""

from __future__ import annotations

from evalmode.optimization.judge import FEWEST

__all__ = ["DECISIVE", "for_judging", "for_the_end", "for_the_judge"]

DECISIVE = 8
"""Rounds in which the winner has to be timed: one lost round more, and a sign test still says it."""

_JUDGING = 18  # runs of a sample that judging one candidate costs: answers in fp64 and fp32, the gate, stability
_FOR_JUDGING = (0.15, 0.4)  # of the budget, at least and at most
_FOR_THE_END = (0.1, 0.25)


def for_judging(budget: float, sample_seconds: float, answers: int = 0) -> float:
    """The seconds that judging the winner will take, where plain takes so long for a sample.

    `answers` are the samples of the user's data that every candidate has to answer.

    Example:
        >>> for_judging(60, 0.001), for_judging(60, 1.0), for_judging(60, 0.01, answers=2000)
        (9.0, 24.0, 20.0)
    """
    least, most = (share * budget for share in _FOR_JUDGING)
    return min(max(least, max(_JUDGING * FEWEST, answers) * sample_seconds), most)


def for_the_judge(budget: float, left: float) -> float:
    """The seconds for the answers that candidates are judged by, where so many are left of the budget."""
    least, most = _FOR_JUDGING
    return min(max(0.3 * left, least / 2 * budget), most / 2 * budget)


def for_the_end(budget: float, call_seconds: float) -> float:
    """The seconds for the last rounds of plain and the winner, where plain takes so long for a round.

    Example:
        >>> for_the_end(60, 0.001), for_the_end(60, 0.5)
        (6.0, 8.0)
    """
    least, most = (share * budget for share in _FOR_THE_END)
    return min(max(least, 2 * DECISIVE * call_seconds), most)
