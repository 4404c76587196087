"""The layout of text in a terminal: columns, wrapping, colour, and what an encoding can show."""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

__all__ = ["Look", "displayable", "duration", "ends", "entry", "look", "one_line", "padded", "plural", "render"]

GAP = "   "
_WIDEST, _NARROWEST = 100, 20
_PLAIN = str.maketrans(
    {"×": "x", "–": "-", "—": "-", "…": "...", "’": "'", "≤": "<=", "≥": ">=", "±": "+/-", "→": "->", "·": "-"}
)


@dataclass(frozen=True, slots=True)
class Look:
    """What a terminal can show. Units: `width` in character cells."""

    width: int = 80
    color: bool = False
    unicode: bool = True


def look(
    stream: TextIO | None = None, *, width: int | None = None, color: bool | None = None, unicode: bool | None = None
) -> Look:
    """What `stream` (standard output by default) can show; arguments that are given win over what is found.

    Source: https://no-color.org, https://force-color.org.
    """
    out = sys.stdout if stream is None else stream
    if width is None:
        width = shutil.get_terminal_size((80, 24)).columns
    if color is None:
        color = _wants_color(out)
    if unicode is None:
        unicode = _shows_unicode(out)
    return Look(width=max(_NARROWEST, min(width, _WIDEST)), color=color, unicode=unicode)


def render(lines: Iterable[Text], shape: Look) -> str:
    """The lines as one string, with escape codes only if the look has colour."""
    if not shape.color:
        return "\n".join(line.plain.rstrip() for line in lines)
    buffer = io.StringIO()
    console = Console(
        file=buffer, force_terminal=True, color_system="standard", no_color=False, legacy_windows=False, width=10_000
    )
    for line in lines:
        line.rstrip()
        console.print(line, soft_wrap=True, highlight=False)
    return buffer.getvalue().rstrip("\n")


def entry(prefix: Text, column: int, body: str | Sequence[str], shape: Look, style: str = "") -> list[Text]:
    """`prefix`, then `body` wrapped from `column` on. A body in parts keeps its parts whole as long as they fit."""
    parts = [body] if isinstance(body, str) else list(body)
    if shape.width - column < min(24, shape.width * 3 // 5):  # too narrow for two columns: the body goes below
        lines = _wrap(prefix, shape.width) if prefix.plain.strip() else []
        below = min(len(prefix.plain) - len(prefix.plain.lstrip()) + 2, shape.width // 4)
        return lines + [_indented(below, text, style) for text in _flow(parts, shape.width - below, shape)]
    texts = _flow(parts, shape.width - column, shape)
    if column and cell_len(prefix.plain) >= column:
        lines = _wrap(prefix, shape.width)
    else:
        first = prefix.copy()
        first.append(" " * (column - cell_len(prefix.plain)))
        first.append(texts.pop(0) if texts else "", style=style)
        lines = [first]
    return lines + [_indented(column, text, style) for text in texts]


def ends(left: Text, right: Text, shape: Look) -> list[Text]:
    """Two texts at the two ends of a line of at most 80 cells; one below the other where they do not fit."""
    room = min(shape.width, 80) - cell_len(left.plain) - cell_len(right.plain)
    if room < 2:
        return [*_wrap(left, shape.width), *_wrap(right, shape.width)]
    return [Text.assemble(left, " " * room, right)]


def displayable(text: str, *, unicode: bool = True) -> str:
    r"""`text` without anything that could move the cursor or that the terminal cannot encode.

    Example:
        >>> print(displayable("a\tb \x1b[31m"), displayable("0.5 ± 0.1 ü", unicode=False))
        a    b \x1b[31m 0.5 +/- 0.1 \xfc
    """
    text = text.replace("\r\n", "\n").replace("\t", "    ").replace("\N{NO-BREAK SPACE}", " ")
    text = "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in text)
    return text if unicode else text.translate(_PLAIN).encode("ascii", "backslashreplace").decode("ascii")


def padded(text: str, width: int) -> str:
    """`text` filled up to so many cells: a character may take two of them.

    Example:
        >>> padded("ab", 4) + "|", padded("正解", 6) + "|"
        ('ab  |', '正解  |')
    """
    return text + " " * max(width - cell_len(text), 0)


def one_line(text: str, shape: Look) -> str:
    r"""A name that others gave, as it can stand inside a line.

    Example:
        >>> one_line("my\n metric", Look())
        'my metric'
    """
    return " ".join(displayable(text, unicode=shape.unicode).split())


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(1.44), duration(41.2), duration(312)
        ('1.4 s', '41 s', '5 min 12 s')
    """
    if not 9.95 <= seconds < math.inf:  # NaN too: a certificate read back may hold it
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"


def plural(count: int, one: str, many: str) -> str:
    """A count with its noun.

    Example:
        >>> plural(1, "probe", "probes"), plural(1200, "probe", "probes")
        ('1 probe', '1,200 probes')
    """
    return f"{count:,} {one if count == 1 else many}"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _wants_color(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def _shows_unicode(stream: TextIO) -> bool:
    variables = ("PYTHONIOENCODING", "LC_ALL", "LC_CTYPE", "LANG")
    chosen = next((value for value in map(os.environ.get, variables) if value), "")
    if chosen in {"C", "POSIX"} and os.environ.get("PYTHONUTF8") != "1":
        return False  # Python writes UTF-8 under LC_ALL=C all the same (PEP 540); such a terminal cannot show it
    try:
        "✓✗".encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _indented(column: int, text: str, style: str) -> Text:
    line = Text(" " * column)
    line.append(text, style=style)
    return line


def _wrap(text: Text, width: int) -> list[Text]:
    return list(text.wrap(Console(width=width, file=io.StringIO()), width, overflow="fold"))


def _wrapped(text: str, room: int) -> list[str]:
    """The lines of a text; an address that is longer than a line stands whole on a line of its own."""
    parts = re.split(rf"(\S*https?://\S{{{max(room - 8, 1)},}})", text)
    lines: list[str] = []
    for place, part in enumerate(parts):
        if place % 2 and cell_len(part) > room:
            lines.append(part)
        elif part.strip() or len(parts) == 1:
            lines += [line.plain.rstrip() for line in _wrap(Text(part.strip()), room)]
    return lines


def _flow(parts: Sequence[str], room: int, shape: Look) -> list[str]:
    """Parts side by side while they fit, one below the other where they do not, wrapped where one alone does not."""
    lines: list[str] = []
    for part in (displayable(part, unicode=shape.unicode) for part in parts):
        if not part.strip():
            continue
        joined = f"{lines[-1]}{GAP}{part}" if lines else part
        if lines and "\n" not in part and cell_len(joined.rstrip()) <= room:
            lines[-1] = joined
            continue
        for piece in part.split("\n"):
            indent = re.match(" *", piece.rstrip())
            margin = indent.group() if indent and len(indent.group()) < room // 2 else ""
            lines += [margin + line for line in _wrapped(piece.strip(), room - len(margin))]
        if cell_len(part.rstrip()) < cell_len(part) <= room and "\n" not in part:
            lines[-1] = part  # padding that aligns a column is kept
    return lines
