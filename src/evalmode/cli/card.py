"""`evalmode card FILE...`: a model card in Markdown, from a certificate and evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command("card", short_help="Print a model card in Markdown, from a certificate.")
def print_card(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="A certificate, and evaluations: JSON of evaluate --out, or Parquet of --keep-predictions.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write it to this file instead.")
    ] = None,
) -> None:
    """Print a model card: contract, plan, figures with intervals, slices, environment. Nothing is run."""
    from evalmode.atomic_file import atomic_file
    from evalmode.cli.printing import apart, print_text, say
    from evalmode.cli.result_files import read_results
    from evalmode.errors import UsageError
    from evalmode.terminal.model_card import card_text

    apart({"--out": output}, files)
    certificate, evaluations = read_results(files, "card")
    text = card_text(certificate, evaluations)
    if output is None:
        print_text(text.removesuffix("\n"))
        return
    try:
        with atomic_file(output) as file:
            file.write(text.encode())
    except OSError as error:
        raise UsageError(f"cannot write {str(output)!r}: {error.strerror}", fix="name another file") from error
    say(f"card  {output}")
