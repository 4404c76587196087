"""`evalmode explain TOPIC`: the page of a code, a clause, a back end or a pass."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

import evalmode

if TYPE_CHECKING:
    from evalmode.page import Page

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

_CLAUSES, _BACK_ENDS, _PASSES = "Clauses of the contract", "Back ends of optimize", "Passes of optimize"


@app.command("explain", short_help="Explain a code such as EM171, a clause, back end or pass.")
def explain_topic(
    topic: Annotated[
        str | None,
        typer.Argument(
            metavar="[TOPIC]",
            show_default=False,
            help="A code such as EM171, or a clause, back end or pass by name. Without it: the list of all.",
        ),
    ] = None,
) -> None:
    """Print the page of a code, clause, back end or pass: what, why, example, fix."""
    from evalmode.clause import CLAUSES
    from evalmode.cli.printing import print_text
    from evalmode.errors import UsageError
    from evalmode.task import nearest
    from evalmode.terminal import page_text, topics_text

    known = _known_pages()
    if topic is None:
        titles = {group: _titles(pages) for group, pages in known.items()}
        print_text(topics_text(titles))
        return
    wanted = topic.strip()
    page = _page_of(wanted, known)
    if page is not None:
        print_text(page_text(page, code=wanted.upper()))
        return
    clause = CLAUSES.get(wanted.lower())
    if clause is not None:
        print_text(f"{clause.name}: {clause.promise}\n  evalmode {evalmode.__version__} has no test of this clause yet")
        return
    codes = [code for page in known[_CLAUSES].values() for code in page.codes]
    names = [*dict.fromkeys([*CLAUSES, *(name for pages in known.values() for name in pages)])]
    others = [*known[_BACK_ENDS], *known[_PASSES]]
    raise UsageError(
        f"there is no page for {topic!r}",
        expected=_wrapped(
            f"a code ({', '.join(codes)}), a clause ({', '.join(CLAUSES)}), a back end or a pass ({', '.join(others)})"
        ),
        fix=_nearest_code(wanted, codes) or nearest(_plain(wanted), names) or "evalmode explain   # lists them all",
    )


def _known_pages() -> dict[str, dict[str, Page]]:
    """Every page by the kind of thing it explains and its name, read without importing torch."""
    from evalmode.backends.catalog import pages as backend_pages
    from evalmode.checking.catalog import pages as clause_pages
    from evalmode.optimization.catalog import pages as pass_pages

    return {_CLAUSES: clause_pages(), _BACK_ENDS: backend_pages(), _PASSES: pass_pages()}


def _page_of(topic: str, known: dict[str, dict[str, Page]]) -> Page | None:
    """The page called `topic`, or the one that has it among its codes; a hyphen and an underscore are the same."""
    for pages in known.values():
        for name, page in pages.items():
            if _plain(topic) == _plain(name) or topic.upper() in page.codes:
                return page
    return None


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _titles(pages: dict[str, Page]) -> dict[str, str]:
    """What each page is about, without its own name in front."""
    found = {}
    for name, page in pages.items():
        codes = f" ({', '.join(page.codes)})" if page.codes else ""
        found[name] = page.title.removeprefix(f"{name}: ") + codes
    return found


def _wrapped(text: str) -> str:
    """A long list over several lines, as it stands behind `expected:` in a message."""
    return ("\n" + " " * 12).join(textwrap.wrap(text, 66, break_on_hyphens=False))


def _nearest_code(topic: str, codes: list[str]) -> str:
    """A hint at the code that begins like `topic`, or whose number is nearest; nothing if it is no code at all."""
    from evalmode.task import nearest

    match = re.fullmatch(r"[A-Za-z]{0,3}\s*-?(\d{1,4})", topic)
    if match is None:
        return nearest(topic.upper(), codes)
    begun = [code for code in codes if code.removeprefix("EM").startswith(match[1])]
    chosen = min(begun or codes, key=lambda code: abs(int(code.removeprefix("EM")) - int(match[1])))
    return f"did you mean `{chosen}`?"
