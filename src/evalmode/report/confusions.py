"""The confusion matrix as the page shows it: whole for a few classes, the most confused ones for many."""

from __future__ import annotations

from dataclasses import dataclass

from evalmode.certificate import ConfusionRecord
from evalmode.report.wording import NOTHING, several

__all__ = ["ConfusionCell", "ConfusionRow", "Confusions", "confusions"]

_MOST = 24  # classes of a matrix that one can still read
_LISTED = 12  # confusions that are named one by one
_LEVELS = 6
_OTHERS = "all others"


@dataclass(frozen=True, slots=True)
class ConfusionCell:
    """A count, the style of its cell (right or wrong, how large a share of its row it is), and the same in words."""

    text: str
    style: str
    words: str


@dataclass(frozen=True, slots=True)
class ConfusionRow:
    """The samples of one class: how often each answer was given, how many there are, and the share that is right."""

    label: str
    cells: tuple[ConfusionCell, ...]
    total: str
    right: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusions:
    """The matrix, and the most frequent confusions as (class, answer, samples, share of the class)."""

    labels: tuple[str, ...]
    rows: tuple[ConfusionRow, ...]
    frequent: tuple[tuple[str, str, str, str], ...]
    sentence: str


def confusions(record: ConfusionRecord) -> Confusions | None:
    """The matrix of `record`; None where it is empty or its counts are no square of its labels."""
    labels, counts = record.labels, record.counts
    if not labels or len(counts) != len(labels) or any(len(row) != len(labels) for row in counts):
        return None
    total = sum(map(sum, counts))
    wrong = total - sum(row[position] for position, row in enumerate(counts))
    sentence = f"{wrong:,} of {several(total, 'sample')} got the answer of another class."
    if len(labels) > _MOST:
        sentence += f" The {_MOST} most confused of {len(labels):,} classes; the others are summed up."
    shown, table = (labels, counts) if len(labels) <= _MOST else _condensed(record)
    return Confusions(
        labels=shown,
        rows=tuple(_row(row, position, shown) for position, row in enumerate(table)),
        frequent=_frequent(record),
        sentence=sentence,
    )


def _condensed(record: ConfusionRecord) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """The classes with the most errors, as class or as answer, and one row and column for all others together.

    Right answers of the others, and confusions among them, are one count in the last cell.
    """
    counts = record.counts
    columns = [sum(column) for column in zip(*counts, strict=True)]
    errors = [sum(row) + columns[position] - 2 * row[position] for position, row in enumerate(counts)]
    ranked = sorted(range(len(counts)), key=lambda position: -errors[position])
    chosen = sorted(ranked[:_MOST])
    table = [[counts[one][other] for other in chosen] for one in chosen]
    for row, one in zip(table, chosen, strict=True):
        row.append(sum(counts[one]) - sum(row))
    below = [columns[other] - sum(counts[one][other] for one in chosen) for other in chosen]
    rest = sum(columns) - sum(map(sum, table)) - sum(below)
    labels = (*(record.labels[position] for position in chosen), _OTHERS)
    return labels, (*(tuple(row) for row in table), (*below, rest))


def _row(row: tuple[int, ...], position: int, labels: tuple[str, ...]) -> ConfusionRow:
    total, label = sum(row), labels[position]
    others = label == _OTHERS and position == len(row) - 1
    cells = tuple(
        ConfusionCell(
            f"{count:,}",
            _style(count, total, right=other == position, plain=others),
            f"{label} answered with {labels[other]}: {several(count, 'sample')}, {100 * count / total:.1f} %"
            if count > 0
            else "",
        )
        for other, count in enumerate(row)
    )
    right = f"{100 * row[position] / total:.1f} %" if total > 0 and not others else NOTHING
    return ConfusionRow(label, cells, f"{total:,}", right)


def _style(count: int, total: int, *, right: bool, plain: bool) -> str:
    if count <= 0 or total <= 0:
        return "none"
    if plain:
        return "some"
    level = min(_LEVELS, max(1, round(_LEVELS * count / total)))
    return f"{'right' if right else 'wrong'}-{level}"


def _frequent(record: ConfusionRecord) -> tuple[tuple[str, str, str, str], ...]:
    found = [
        (count, one, other)
        for one, row in enumerate(record.counts)
        for other, count in enumerate(row)
        if other != one and count > 0
    ]
    found.sort(key=lambda item: (-item[0], item[1], item[2]))
    return tuple(
        (
            record.labels[one],
            record.labels[other],
            f"{count:,}",
            f"{100 * count / sum(record.counts[one]):.1f} %",
        )
        for count, one, other in found[:_LISTED]
    )
