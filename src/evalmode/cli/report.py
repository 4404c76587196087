"""`evalmode report FILE...`: a certificate and evaluations as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command("report", short_help="Draw a certificate and evaluations as one page.")
def report_of(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="A certificate, and evaluations: JSON of evaluate --out, or Parquet of --keep-predictions.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Where to write it.  [default: report.html beside the first]"),
    ] = None,
) -> None:
    """Draw a certificate and evaluations as one page, report.html, that needs no network. Nothing is run."""
    from evalmode.cli.printing import apart, print_text
    from evalmode.cli.result_files import read_results
    from evalmode.report.page import write_report
    from evalmode.terminal.plans import byte_size

    apart({"--out": out}, files)
    certificate, evaluations = read_results(files, "report")
    title = evaluations[0].subject if certificate is None and evaluations else ""
    page = write_report(out or files[0].parent / "report.html", certificate, evaluations, title=title)
    print_text(f"{page}  {byte_size(page.stat().st_size)}")
    raise typer.Exit(0)
