"""How a page, and the list of all pages, look in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.text import Text

from evalmode.page import Page
from evalmode.terminal.layout import Look, displayable, entry, look, render

__all__ = ["page_text", "topics_text"]


def page_text(page: Page, *, code: str = "", width: int | None = None, color: bool | None = None) -> str:
    """A page with its headings; `code` is shown first, with what it says.

    Example:
        >>> from evalmode.page import Page
        >>> page = Page("finite", {"Limits": "A short text."}, {"EM191": "NaN"}, "")
        >>> print(page_text(page, code="EM191", width=40, color=False))
        EM191   NaN
        <BLANKLINE>
        finite
        <BLANKLINE>
        Limits
          A short text.
    """
    shape = look(width=width, color=color)
    lines: list[Text] = []
    if code in page.codes:
        lines += [*entry(Text(code, style="bold red"), len(code) + 3, page.codes[code], shape), Text()]
    lines += entry(Text(), 0, page.title, shape, style="bold")
    for heading, body in page.sections_for(code).items():
        lines += [Text(), Text(heading, style="bold")]
        for block, is_code in _blocks(body):
            lines += _block_lines(block, shape, is_code=is_code)
    return render(lines, shape)


def topics_text(topics: Mapping[str, Mapping[str, str]], *, width: int | None = None, color: bool | None = None) -> str:
    """What can be explained, in groups: each name with what its page is about.

    Example:
        >>> print(
        ...     topics_text({"Passes": {"remove-dropout": "dropout that is off is taken out"}}, width=60, color=False)
        ... )
        Passes
          remove-dropout  dropout that is off is taken out
    """
    shape = look(width=width, color=color)
    column = 4 + max((len(name) for group in topics.values() for name in group), default=0)
    lines: list[Text] = []
    for heading, group in topics.items():
        lines += [*([Text()] if lines else []), Text(heading, style="bold")]
        for name, title in group.items():
            lines += entry(Text(f"  {name}"), min(column, max(shape.width // 2, 4)), title, shape)
    return render(lines, shape)


def _blocks(body: str) -> Iterator[tuple[list[str], bool]]:
    """Runs of indented lines (code) and paragraphs of prose, blank lines between them included as empty blocks."""
    block: list[str] = []
    is_code = False
    for line in body.rstrip().splitlines():
        own_line = line.startswith("    ")
        starts_item = line.lstrip().startswith(("- ", "* ", "EM"))
        if block and (not line.strip() or own_line != is_code or starts_item):
            yield block, is_code
            block = []
        if not line.strip():
            yield [], False
            continue
        block.append(line)
        is_code = own_line
    if block:
        yield block, is_code


def _block_lines(block: list[str], shape: Look, *, is_code: bool) -> list[Text]:
    if not block:
        return [Text()]
    if is_code and block[0].lstrip().startswith("EM"):  # the list of codes
        return [text for line in block for text in entry(Text(" "), 2, line, shape, style="cyan")]
    if is_code:  # never wrapped: it has to run when it is pasted
        return [Text(f"  {displayable(line, unicode=shape.unicode)}", style="cyan") for line in block]
    prose = " ".join(line.strip() for line in block)
    indent = len(block[0]) - len(block[0].lstrip())
    first, _, rest = prose.partition(" ")
    if first in {"-", "*"} or (first.startswith("EM") and first[2:].isdigit()):
        return entry(
            Text(" " * (2 + indent) + first),
            2 + indent + len(first) + (1 if len(first) == 1 else 3),
            rest.strip(),
            shape,
        )
    return entry(Text(" "), 2 + indent, prose, shape)
