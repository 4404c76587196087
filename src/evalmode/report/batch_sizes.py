"""Which batch sizes agree bit for bit, as a matrix: from what `batch-independent` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalmode.certificate import Certificate
from evalmode.clause import Verdict
from evalmode.report.wording import finite, number, several

__all__ = ["SizeCell", "Sizes", "batch_sizes"]


@dataclass(frozen=True, slots=True)
class SizeCell:
    """Whether two sizes agree: what is shown, the same in words, and the style of the cell."""

    text: str
    words: str
    style: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The matrix of the sizes that were tried, and what it means in one sentence."""

    sizes: tuple[int, ...]
    rows: tuple[tuple[SizeCell, ...], ...]
    classes: str
    sentence: str
    answers: str
    run_at: str


def batch_sizes(certificate: Certificate) -> Sizes | None:
    """The matrix; None where the clause was not tested, or measured no sizes.

    Raises:
        Nothing: what does not have the form that this version measures is not drawn.
    """
    measured = next((item.measured for item in certificate.clauses if item.clause == "batch-independent"), {})
    classes = _classes(measured)
    if not classes:
        return None
    home = {size: position for position, members in enumerate(classes) for size in members}
    sizes = tuple(sorted(home))
    gaps = measured.get("differences between classes")
    rows = tuple(tuple(_cell(home[one], home[other], gaps, one, other) for other in sizes) for one in sizes)
    largest = number(finite(measured.get("largest difference")), ".1e")
    verdict = next(item.verdict for item in certificate.clauses if item.clause == "batch-independent")
    return Sizes(
        sizes=sizes,
        rows=rows,
        classes=" | ".join(", ".join(map(str, members)) for members in classes),
        sentence=_sentence(sizes, classes, largest, verdict),
        answers=_answers(measured),
        run_at=_run_at(certificate),
    )


def _sentence(sizes: Sequence[int], classes: Sequence[Sequence[int]], largest: str, verdict: Verdict) -> str:
    if len(sizes) == 1:
        return f"The model runs at batch size {sizes[0]} alone: there is nothing to compare it with."
    if len(classes) == 1:
        return f"All {len(sizes)} batch sizes that were tried give a sample the same bits."
    kinds = {
        Verdict.KEPT: "which is rounding, not dependence",
        Verdict.BROKEN: "and its answer depends on its companions",
        Verdict.ALLOWED: "and its answer depends on its companions, which was allowed",
    }
    why = kinds.get(verdict, "and it is undecided whether that is rounding")
    return (
        f"{several(len(classes), 'class', 'classes')} of batch sizes agree bit for bit among themselves; between "
        f"them a sample's outputs differ by up to {largest}, {why}."
    )


def _classes(measured: Mapping[str, Any]) -> list[list[int]]:
    classes = measured.get("size classes")
    if not isinstance(classes, list):
        return []
    members = [[size for size in group if isinstance(size, int)] for group in classes if isinstance(group, list)]
    return [group for group in members if group]


def _cell(one: int, other: int, gaps: object, size: int, against: int) -> SizeCell:
    if one == other:
        return SizeCell("=", f"{size} and {against}: same bits", "same")
    gap = None
    if isinstance(gaps, list) and max(one, other) < len(gaps):
        row = gaps[max(one, other)]
        gap = finite(row[min(one, other)]) if isinstance(row, list) and min(one, other) < len(row) else None
    if gap is None:
        return SizeCell("≠", f"{size} and {against}: other bits", "other")
    return SizeCell(f"{gap:.0e}", f"{size} and {against}: differ by up to {gap:.1e}", "other")


def _answers(measured: Mapping[str, Any]) -> str:
    compared, changed = measured.get("answers compared"), measured.get("answers that change")
    if not isinstance(compared, int) or not isinstance(changed, int):
        return ""
    return f"{changed:,} of {compared:,}"


def _run_at(certificate: Certificate) -> str:
    record = certificate.optimization
    if record is None or not record.stable or not record.execution_sizes:
        return ""
    held = several(len(record.execution_sizes), "size")
    return f"The plan runs at {held} ({', '.join(map(str, record.execution_sizes))}): a sample has the same bits there."
