"""`evalmode explain CODE|CLAUSE`: the page of a code or clause."""

from __future__ import annotations

import re
import textwrap
from typing import Annotated

import typer

import evalmode

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command("explain")
def explain_topic(
    topic: Annotated[str, typer.Argument(metavar="CODE|CLAUSE", help="A code such as EM171, or a clause by name.")],
) -> None:
    """Print the page of a code or a clause: what, why, example, fix."""
    from evalmode.checking.catalog import page_for, pages
    from evalmode.clause import CLAUSES
    from evalmode.cli.printing import print_text
    from evalmode.errors import UsageError
    from evalmode.task import nearest
    from evalmode.terminal import page_text

    page = page_for(topic)
    if page is not None:
        print_text(page_text(page, code=topic.strip().upper()))
        return
    clause = CLAUSES.get(topic.strip().lower())
    if clause is not None:
        print_text(f"{clause.name}: {clause.promise}\n  evalmode {evalmode.__version__} has no test of this clause yet")
        return
    codes = [code for known in pages().values() for code in known.codes]
    raise UsageError(
        f"there is no page for {topic!r}",
        expected=_wrapped(f"a code ({', '.join(codes)}) or a clause ({', '.join(CLAUSES)})"),
        fix=_nearest_code(topic.strip(), codes) or nearest(topic.strip().lower(), [*CLAUSES]) or None,
    )


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
