"""How much an optimised model may differ from the user's own."""

from __future__ import annotations

import dataclasses
import math

from evalmode.errors import UsageError

__all__ = ["Tolerance"]

KINDS = ("fp32", "task")


@dataclasses.dataclass(frozen=True, slots=True)
class Tolerance:
    """How much an optimised model may differ from the user's own.

    `fp32`: measured against fp64, a candidate's error is at most `multiple` times the error that the plain model makes
    itself; errors below `floor` units in the last place of an output's scale count as none.

    `task`: on the user's data at most a share `decisions` of the answers changes, and the metric loses at most
    `metric_loss` (of a proportion: 0.01 is one point; of any other figure: that share of it). Both are one-sided bounds
    that hold at `confidence`, shared by all candidates.

    Raises:
        UsageError: the kind is unknown, or a margin is out of its range.

    Example:
        >>> Tolerance.of("task").decisions
        0.02
        >>> Tolerance("fp32", multiple=2).multiple
        2
    """

    kind: str = "fp32"
    multiple: float = 4.0
    floor: float = 16.0
    decisions: float = 0.02
    metric_loss: float = 0.01
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"tolerance {self.kind!r}", expected="'fp32', 'task' or evalmode.Tolerance(...)")
        for name, least, most in (
            ("multiple", 1.0, float("inf")),
            ("floor", 0.0, float("inf")),
            ("decisions", 0.0, 1.0),
            ("metric_loss", 0.0, float("inf")),
        ):
            value = getattr(self, name)
            if not _is_number(value) or not least <= value <= most or math.isinf(value):
                raise UsageError(
                    f"{name} of the tolerance is {value!r}",
                    expected=f"a number from {least:g}" + (f" to {most:g}" if math.isfinite(most) else " on"),
                )
        if not _is_number(self.confidence) or not 0.5 <= self.confidence < 1.0:
            raise UsageError(
                f"confidence of the tolerance is {self.confidence!r}", expected="a number from 0.5 to below 1"
            )

    @classmethod
    def of(cls, value: str | Tolerance) -> Tolerance:
        """The tolerance that a user named: `"fp32"`, `"task"`, or one made already.

        Raises:
            UsageError: it is something else.
        """
        if isinstance(value, Tolerance):
            return value
        if not isinstance(value, str):
            raise UsageError(f"tolerance {value!r}", expected="'fp32', 'task' or evalmode.Tolerance(...)")
        return cls(value.strip().lower())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
