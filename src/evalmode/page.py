"""The page of a clause or code, read from the docstring of the file that implements it. Knows no torch.

A page opens with a one-line title and has the headings of `HEADINGS`, each underlined with dashes. Examples are
indented code. The `Codes` heading lists each code with its one-line summary. A code may have examples of its own, under
`Example (EM172)` and `Use instead (EM172)`.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from evalmode.errors import UsageError

__all__ = ["HEADINGS", "Page", "parse_page", "read_page"]

HEADINGS = ("What it does", "Why it matters", "Example", "Use instead", "Fix and its safety", "Limits", "Source")
"""The headings that every page has, in this order; `Codes` follows `What it does` where the file has codes."""

_CODE = re.compile(r"^\s*(EM\d{3})\s+(\S.*)$")
_OWN = re.compile(r"(Example|Use instead) \((EM\d{3})\)")


@dataclass(frozen=True, slots=True)
class Page:
    """A page: its title, its sections by heading, and the codes that it explains."""

    title: str
    sections: Mapping[str, str]
    codes: Mapping[str, str]
    text: str

    def code_block(self, heading: str) -> str:
        """The Python code of a section: its indented lines, dedented."""
        lines = self.sections[heading].splitlines()
        kept = [line for line in lines if line.startswith("    ") or not line.strip()]
        return textwrap.dedent("\n".join(kept)).strip() + "\n"

    def sections_for(self, code: str) -> dict[str, str]:
        """The sections as `code` has them: its own examples in place of the page's, and no other code's; all for `""`.

        Example:
            >>> page = Page("t", {"Example": "a", "Example (EM172)": "b"}, {"EM171": "x", "EM172": "y"}, "")
            >>> page.sections_for("EM171"), page.sections_for("EM172")
            ({'Example': 'a'}, {'Example': 'b'})
        """
        if code not in self.codes:
            return dict(self.sections)
        general = {heading: body for heading, body in self.sections.items() if not _OWN.fullmatch(heading)}
        return {heading: self.sections.get(f"{heading} ({code})", body) for heading, body in general.items()}


def read_page(path: Path) -> Page:
    """The page of a Python file, read without importing it.

    Raises:
        UsageError: the file has no docstring, or the docstring is no page.
    """
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if docstring is None:
        raise UsageError(f"{path.name} has no docstring", expected="a page: title and headings")
    return parse_page(docstring, path.name)


def parse_page(text: str, name: str = "page") -> Page:
    """The page that a docstring holds.

    Raises:
        UsageError: a heading is missing, unknown, empty or out of order.
    """
    lines = text.strip().splitlines()
    title = lines[0].rstrip(".")
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for position, line in enumerate(lines[1:], start=1):
        following = lines[position + 1] if position + 1 < len(lines) else ""
        if line and set(following.strip()) == {"-"} and len(following.strip()) >= 3:
            current = sections.setdefault(line.strip(), [])
        elif not (line.strip() and set(line.strip()) == {"-"}):
            current.append(line)
    found = [heading for heading in sections if heading != "Codes" and not _OWN.fullmatch(heading)]
    if tuple(found) != HEADINGS:
        raise UsageError(
            f"{name} has the headings {', '.join(found) or 'none'}", expected=", ".join(HEADINGS) + ", in this order"
        )
    bodies = {heading: "\n".join(body).strip("\n") for heading, body in sections.items()}
    empty = [heading for heading, body in bodies.items() if not body.strip()]
    if empty:
        raise UsageError(f"{name} says nothing under {', '.join(empty)}")
    codes = _codes(bodies.get("Codes", ""))
    own = {match[2] for heading in bodies if (match := _OWN.fullmatch(heading))}
    for code in sorted(own):
        if code not in codes or not {f"Example ({code})", f"Use instead ({code})"} <= bodies.keys():
            raise UsageError(f"{name} has half an example of {code}", expected="a code of its own, with both headings")
    return Page(title, MappingProxyType(bodies), MappingProxyType(codes), text.strip())


def _codes(body: str) -> dict[str, str]:
    codes: dict[str, str] = {}
    for line in body.splitlines():
        match = _CODE.match(line)
        if match:
            codes[match[1]] = match[2].strip()
    return codes
