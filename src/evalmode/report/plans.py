"""The plans that were tried, as the page shows them: rows of a table, and points of error against time."""

from __future__ import annotations

from dataclasses import dataclass

from evalmode.certificate import OptimizationRecord, PlanRecord
from evalmode.report.wording import NOTHING, factor, finite, joined, number, several, shown, time_taken
from evalmode.terminal.plans import byte_size

__all__ = ["PlanPoint", "PlanRow", "Plans", "plan_view"]

_MOST = 120
_ACCEPTED = ("chosen", "plain", "verified")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One plan; `reason` says why it was not chosen."""

    position: int
    name: str
    style: str
    outcome: str
    rate: str
    speedup: str
    error: str
    memory: str
    build: str
    reason: str
    drawn: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPoint:
    """One plan of which both are known. Units: `time` and `error` as shares of those of plain `eval()`."""

    position: int
    name: str
    outcome: str
    time: float
    error: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """The table, the points, and those points that no other accepted plan beats in both time and error."""

    rows: tuple[PlanRow, ...]
    points: tuple[PlanPoint, ...]
    frontier: tuple[PlanPoint, ...]
    chosen: str
    speedup: str
    faster: bool
    none_faster: bool
    setting: str
    notes: tuple[str, ...]
    more: str


def plan_view(record: OptimizationRecord) -> Plans:
    """What a search tried, chosen and plain first, then by speed, then those without figures."""
    if not record.plans:
        return Plans(
            rows=(),
            points=(),
            frontier=(),
            chosen="",
            speedup="",
            faster=False,
            none_faster=False,
            setting=_setting(record),
            notes=record.notes,
            more="",
        )
    chosen = record.chosen
    ordered = sorted(record.plans, key=lambda plan: (plan is not chosen, -(finite(plan.speedup) or 0.0)))
    drawn = [_point(position, plan) for position, plan in enumerate(ordered[:_MOST], 1)]
    points = tuple(point for point in drawn if point is not None)
    return Plans(
        rows=tuple(
            _row(position, plan, chosen=plan is chosen, drawn=drawn[position - 1] is not None)
            for position, plan in enumerate(ordered[:_MOST], 1)
        ),
        points=points,
        frontier=_frontier(points),
        chosen=chosen.name,
        speedup=factor(chosen.speedup),
        faster=chosen.outcome == "chosen",
        none_faster=not any(plan.outcome == "verified" and (finite(plan.speedup) or 0) > 1 for plan in ordered),
        setting=_setting(record),
        notes=record.notes,
        more=f"{several(len(ordered) - _MOST, 'further plan')} in the certificate" if len(ordered) > _MOST else "",
    )


def _setting(record: OptimizationRecord) -> str:
    sizes = ", ".join(map(str, record.batch_sizes))
    took = time_taken(record.seconds)
    found = [
        f"tolerance {record.tolerance}" if record.tolerance else "",
        f"sought for {record.objective}" if record.objective else "",
        f"batches of {sizes}" if sizes else "",
        took and f"searched for {took}",
    ]
    text = joined(found, "; ")
    return f"{text[0].upper()}{text[1:]}" if text else ""


def _row(position: int, plan: PlanRecord, *, chosen: bool, drawn: bool) -> PlanRow:
    rate = finite(plan.samples_per_second)
    detail = [f"{several(plan.streams, 'stream')}" if plan.streams > 1 else "", ", ".join(plan.passes)]
    return PlanRow(
        position=position,
        name=plan.name,
        style=_style(plan),
        outcome="chosen" if chosen and plan.outcome == "plain" else plan.outcome,
        rate=number(rate, ",.0f" if rate is not None and rate >= 100 else ".3g"),
        speedup=factor(plan.speedup),
        error=factor(plan.error),
        memory=byte_size(plan.peak_bytes) or NOTHING,
        build=time_taken(plan.build_seconds) or NOTHING,
        reason=plan.reason.removeprefix(f"{plan.outcome}: ") or joined(detail),
        drawn=drawn,
    )


def _style(plan: PlanRecord) -> str:
    if plan.outcome in {"chosen", "plain", "verified"}:
        return plan.outcome
    return "rejected" if plan.outcome in {"rejected", "unstable", "failed"} else "other"


def _point(position: int, plan: PlanRecord) -> PlanPoint | None:
    speedup, error = finite(plan.speedup), finite(plan.error)
    if speedup is None or speedup <= 0 or error is None or error < 0 or _style(plan) == "other":
        return None
    rate = finite(plan.samples_per_second)
    words = [
        f"{position}. {shown(plan.name)}",
        plan.outcome,
        f"{factor(speedup)} as fast as plain",
        f"{factor(error)} its error",
        f"{rate:,.0f} samples/s" if rate is not None else "",
    ]
    return PlanPoint(
        position=position,
        name=plan.name,
        outcome=_style(plan),
        time=1 / speedup,
        error=error,
        words=joined([shown(part) for part in words], "; "),
    )


def _frontier(points: tuple[PlanPoint, ...]) -> tuple[PlanPoint, ...]:
    """The accepted plans that none beats in both, from the fastest on.

    Source: https://en.wikipedia.org/wiki/Pareto_front
    """
    best: list[PlanPoint] = []
    for point in sorted(points, key=lambda point: (point.time, point.error)):
        if point.outcome in _ACCEPTED and (not best or point.error < best[-1].error):
            best.append(point)
    return tuple(best)
