"""`evalmode report CERTIFICATE.json`: the page of a certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command("report")
def report_of(
    certificate: Annotated[
        Path,
        typer.Argument(metavar="CERTIFICATE.json", help="A certificate, as `evalmode certify --out DIR` writes it."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Where to write the page.  [default: report.html beside it]"),
    ] = None,
) -> None:
    """Draw a certificate as one page, report.html, that needs no network."""
    from evalmode.certificate import Certificate
    from evalmode.cli.printing import print_text
    from evalmode.report.page import write_report

    page = write_report(out or certificate.parent / "report.html", Certificate.load(certificate))
    print_text(f"{page}  {page.stat().st_size / 1e6:.2f} MB")
    raise typer.Exit(0)
