"""How a certificate that was tested again looks in a terminal. Takes plain data, and knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from evalmode.terminal.layout import Look, duration, ends, entry, look, one_line, plural, render

__all__ = ["Row", "verification_text"]

Row = tuple[str, str, str, str]
"""A part, a name in it, the outcome (`same`, `differs` or `cannot be tested here`), and its detail."""

_MARKS = {"same": ("✓", "=", "green"), "differs": ("✗", "x", "bold red")}
_OTHER = ("-", "-", "dim")
_SHOWN_WHOLE = {"plan", "test set"}  # what is the same is shown line by line, for its figures
_NARROWEST, _WIDEST = 18, 28  # where details begin


def verification_text(
    subject: str,
    created: str,
    rows: Iterable[Row],
    *,
    ignored: Iterable[str] = (),
    seconds: float = 0.0,
    width: int | None = None,
    color: bool | None = None,
) -> str:
    """Part by part what is the same, what differs and what cannot be tested, then the count.

    `ignored` are parts and names whose differences do not count.

    Example:
        >>> rows = [
        ...     ("model", "weights", "same", ""),
        ...     ("environment", "torch", "same", ""),
        ...     ("environment", "threads", "differs", "2, here 1"),
        ... ]
        >>> print(verification_text("net", "2026-01-01", rows, width=60, color=False))
        Certificate of net, made 2026-01-01, tested again
        <BLANKLINE>
        ✓ model           the same weights
        ✗ environment     1 of 2 the same
            ✗ threads     2, here 1
        <BLANKLINE>
        DIFFERS  1 differs, 2 of 3 the same                    0.0 s
    """
    shape = look(width=width, color=color)
    left_out = frozenset(ignored)
    listed = [(one_line(part, shape), one_line(name, shape), outcome, detail) for part, name, outcome, detail in rows]
    made = f", made {created}" if created else ""
    lines = entry(Text(), 0, f"Certificate of {subject or 'a model'}{made}, tested again", shape, style="bold")
    lines.append(Text())
    longest = max((len(row[1]) for row in listed if row[2] == "differs" or row[0] in _SHOWN_WHOLE), default=0)
    column = max(_NARROWEST, min(longest + 8, _WIDEST))
    for part in dict.fromkeys(row[0] for row in listed):
        lines += _part_lines(part, [row for row in listed if row[0] == part], left_out, column, shape)
    lines.append(Text())
    lines += _closing_lines(listed, left_out, seconds, shape)
    return render(lines, shape)


def _part_lines(part: str, rows: Sequence[Row], ignored: frozenset[str], column: int, shape: Look) -> list[Text]:
    same = [row for row in rows if row[2] == "same"]
    differing = [row for row in rows if row[2] == "differs"]
    others = [row for row in rows if row[2] not in _MARKS]
    counted = [row for row in differing if not ignored & {row[0], row[1]}]
    outcome = "differs" if counted else "same" if same and not differing else ""
    if differing or others:
        body = f"{len(same)} of {len(rows)} the same" if same or differing else "cannot be tested here"
    else:
        body = f"the same {_names(same)}" if len(same) <= 2 else f"{len(same)} of {len(same)} the same"
    mark, style = _mark(outcome, shape)
    lines = entry(Text.assemble((mark, style), " ", (part, "bold")), column, body, shape)
    for row in (*differing, *(same if part in _SHOWN_WHOLE else ())):
        mark, style = _mark(row[2], shape)
        detail = row[3]
        if row[2] == "differs" and ignored & {row[0], row[1]}:
            mark, style = _mark("", shape)
            detail = f"{detail} (ignored)".lstrip()
        if detail:
            lines += entry(Text.assemble("    ", (mark, style), f" {row[1]}"), column, detail, shape)
    reasons: dict[str, list[Row]] = {}
    for row in others:
        reasons.setdefault(row[3], []).append(row)
    mark, style = _mark("", shape)
    for reason, group in reasons.items():
        names = _names(group)
        detail = f"{group[0][2]}: {reason}" if same or differing else reason
        if len(names) + 6 < column:
            lines += entry(Text.assemble("    ", (mark, style), f" {names}"), column, detail, shape, style="dim")
        else:
            lines += entry(Text.assemble("    ", (mark, style)), 6, names, shape)
            lines += entry(Text(), column, detail, shape, style="dim")
    return lines


def _closing_lines(rows: Sequence[Row], ignored: frozenset[str], seconds: float, shape: Look) -> list[Text]:
    differing = [row for row in rows if row[2] == "differs"]
    counted = [row for row in differing if not ignored & {row[0], row[1]}]
    same = sum(row[2] == "same" for row in rows)
    untested = len(rows) - same - len(differing)
    told = [plural(len(counted), "differs", "differ")] if counted else []
    told += [f"{same:,} of {len(rows):,} the same"]
    told += [f"{len(differing) - len(counted)} ignored"] if len(differing) > len(counted) else []
    told += [f"{untested:,} cannot be tested here"] if untested else []
    word, style = ("DIFFERS", "bold red") if counted else ("NOT TESTED", "dim")
    if same and not counted:
        word, style = ("SAME AS FAR AS TESTED", "yellow") if untested else ("SAME", "green")
    line = Text.assemble((word, style), "  " + ", ".join(told))
    return ends(line, Text(duration(seconds), style="dim"), shape)


def _names(rows: Sequence[Row]) -> str:
    names = [row[1] for row in rows]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _mark(outcome: str, shape: Look) -> tuple[str, str]:
    pretty, plain, style = _MARKS.get(outcome, _OTHER)
    return (pretty if shape.unicode else plain), style
