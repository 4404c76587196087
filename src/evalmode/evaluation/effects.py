"""What a comparison finds about one metric of two models: the difference, its interval and chance, and what flipped."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.errors import UsageError
from evalmode.measure.paired import holm

__all__ = [
    "Effect",
    "Flipped",
    "Outcome",
    "adjusted",
    "flipped_by",
    "margin_of",
    "plain",
    "refuse_whole",
]


class Outcome(enum.StrEnum):
    """What the test of a difference came to, at the confidence of the comparison and after Holm's correction."""

    BETTER = "better"
    WORSE = "worse"
    DIFFERENT = "different"
    """Significantly other, by a metric of which nobody said whether more is better."""
    NONE = "no difference shown"
    UNTESTED = "not tested"


@dataclass(frozen=True, slots=True)
class Flipped:
    """The samples whose decision is true in one model and false in the other; true is right where higher is better.

    `gained` are the ids of those that are true in `second` alone, `lost` of those that are in `first` alone.

    Shapes: `(number of samples,)` each, in the order of the first model's samples.
    """

    metric: str
    first: str
    second: str
    gained: NDArray[Any]
    lost: NDArray[Any]

    def __len__(self) -> int:
        return len(self.gained) + len(self.lost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """How much one metric differs between two models: `effect` is `second` minus `first`, from `low` to `high`.

    `p_value` is the chance of a difference at least this large (either way) between models that are alike, None where
    no test could be made; `adjusted` is it after Holm's correction over all the effects of the comparison, and decides
    the `outcome`. `test` says how it was made; `method` how the interval was, which is not adjusted, or why there is
    none.

    Within a `margin`: `equivalent` says that the difference is shown to be smaller either way, `non_inferior` that
    `second` is shown not to be worse by as much; both are None where no margin was given or nothing could be shown.
    `equivalence_p` and `non_inferiority_p` are their chances, after Holm's correction.

    Units: those of the metric; a proportion is a share, so that 0.01 is one point.
    """

    metric: str
    first: str
    second: str
    first_value: float
    second_value: float
    effect: float
    low: float | None
    high: float | None
    confidence: float
    p_value: float | None
    adjusted: float | None
    outcome: Outcome
    method: str
    test: str
    higher_is_better: bool | None
    proportion: bool
    margin: float | None = None
    equivalent: bool | None = None
    non_inferior: bool | None = None
    equivalence_p: float | None = None
    non_inferiority_p: float | None = None
    flipped: Flipped | None = field(default=None, repr=False)


def flipped_by(
    metric: str, labels: tuple[str, str], ids: NDArray[Any], rows: tuple[NDArray[np.bool_], NDArray[np.bool_]]
) -> Flipped:
    """The samples whose decision differs.

    Shapes: ids and rows `(N,)`.

    Example:
        >>> rows = np.array([True, False, True]), np.array([True, True, False])
        >>> flips = flipped_by("accuracy", ("old", "new"), np.array([7, 8, 9]), rows)
        >>> flips.gained.tolist(), flips.lost.tolist()
        ([8], [9])
    """
    first, second = rows
    return Flipped(metric, *labels, gained=ids[second & ~first], lost=ids[first & ~second])


def margin_of(
    margin: float | Mapping[str, float] | None, metrics: tuple[str, ...], proportions: Sequence[str] = ()
) -> dict[str, float]:
    """The margin of each metric that has one; a number is that of all, in each one's own units.

    Raises:
        UsageError: a margin is no positive number, belongs to no metric of the comparison, or is a whole share.

    Example:
        >>> margin_of({"accuracy": 0.01}, ("accuracy", "log loss"))
        {'accuracy': 0.01}
    """
    if margin is None:
        return {}
    given = dict(margin) if isinstance(margin, Mapping) else dict.fromkeys(metrics, margin)
    for name, value in given.items():
        if name not in metrics:
            raise UsageError(
                f"margin names {name!r}, which is not compared", expected=f"one of {', '.join(map(repr, metrics))}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UsageError(
                f"the margin of {name} is {value!r}",
                expected="a positive number in the units of the metric (0.01 is one point of accuracy)",
                fix="margin=0.01",
            )
    refuse_whole(given, proportions)
    return {name: float(value) for name, value in given.items()}


def refuse_whole(margin: float | Mapping[str, float] | None, proportions: Sequence[str]) -> None:
    """Every difference of two shares lies within 1: such a margin shows nothing.

    Raises:
        UsageError: a proportion has one.
    """
    given = margin if isinstance(margin, Mapping) else dict.fromkeys(proportions, margin)
    for name in proportions:
        value = given.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1:
            raise UsageError(
                f"the margin of {name} is {value:g}, and no difference of two shares is larger",
                expected="a margin below 1: 0.01 is one point",
                fix=f"margin={ {name: 0.01} }",
            )


def adjusted(effects: Sequence[Effect], level: float) -> tuple[Effect, ...]:
    """The effects with Holm's correction over all of them, and what that leaves of each."""

    def corrected(name: str) -> list[float | None]:
        values = [getattr(effect, name) for effect in effects]
        known = iter(holm([value for value in values if value is not None]))
        return [None if value is None else float(next(known)) for value in values]

    columns = zip(
        effects, corrected("p_value"), corrected("equivalence_p"), corrected("non_inferiority_p"), strict=True
    )
    return tuple(
        replace(
            effect,
            adjusted=chance,
            outcome=_outcome(effect, chance, level),
            equivalence_p=equal,
            equivalent=None if equal is None else equal < level,
            non_inferiority_p=inferior,
            non_inferior=None if inferior is None else inferior < level,
        )
        for effect, chance, equal, inferior in columns
    )


def _outcome(effect: Effect, chance: float | None, level: float) -> Outcome:
    if chance is None and math.isinf(effect.effect) and effect.higher_is_better is not None:
        return Outcome.BETTER if (effect.effect > 0) is effect.higher_is_better else Outcome.WORSE
    if chance is None:
        return Outcome.UNTESTED
    if chance >= level or effect.effect == 0:
        return Outcome.NONE
    if effect.higher_is_better is None:
        return Outcome.DIFFERENT
    return Outcome.BETTER if (effect.effect > 0) is effect.higher_is_better else Outcome.WORSE


def plain(effect: Effect) -> dict[str, Any]:
    """The effect as plain data, with the ids of all flipped samples."""
    told = {part.name: getattr(effect, part.name) for part in fields(effect) if part.name != "flipped"}
    flips = effect.flipped
    ids = None if flips is None else {"gained": flips.gained.tolist(), "lost": flips.lost.tolist()}
    return {**told, "flipped": ids}
