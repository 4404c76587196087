"""`evalmode inspect FILE`: what an artifact holds, read without loading it."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


class InspectFormat(enum.StrEnum):
    """How the contents are printed."""

    TEXT = "text"
    JSON = "json"


@app.command("inspect", short_help="Show what an artifact holds and what it needs.")
def inspect_file(
    artifact: Annotated[Path, typer.Argument(metavar="FILE", help="An artifact: model.evalmode.")],
    output_format: Annotated[
        InspectFormat, typer.Option("--format", help="Print text, or the whole manifest as JSON.")
    ] = InspectFormat.TEXT,
) -> None:
    """Show what an artifact holds: inputs, plan, machine, certificate. Nothing of it is loaded or run."""
    import msgspec

    from evalmode.cli.printing import print_bytes, print_text
    from evalmode.predictor.artifact import inspect_artifact
    from evalmode.terminal.artifacts import artifact_text
    from evalmode.terminal.plans import byte_size

    manifest = inspect_artifact(artifact)
    if output_format is InspectFormat.JSON:
        print_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        raise typer.Exit(0)
    plan = manifest.plan
    rows = [
        ("file", f"{artifact}  {byte_size(artifact.stat().st_size)}, written by evalmode {manifest.written_by}"),
        ("plan", f"{plan}{f', in place of {manifest.instead_of}' if manifest.instead_of else ''}"),
        ("takes", str(plan.signature)),
        ("gives", ", ".join(map(str, plan.gives()))),
        ("bits", "the same for a sample in any batch" if plan.stable else "may differ with the batch"),
        *([("but", str(plan.non_finite))] if plan.non_finite is not None else []),
        ("model", plan.weights),
        ("needs", ", ".join(manifest.versions.values()) + f"; {manifest.instructions}"),
    ]
    print_text(artifact_text(rows, manifest.environment, manifest.certificate))
    raise typer.Exit(0)
