"""`evalmode predict FILE INPUT`: the answers of an artifact to a file of inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalmode.cli.options import NativeOption

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command("predict")
def predict_file(
    artifact: Annotated[Path, typer.Argument(metavar="FILE", help="An artifact: model.evalmode.")],
    inputs: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A batch of inputs: .npy (one tensor), .npz or .safetensors (tensors by name), .json (a list, or "
            "lists by name); - reads JSON from standard input.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Where to: .npy, .npz, .safetensors or .json. Default: JSON here."
        ),
    ] = None,
    allow_native: NativeOption = False,
) -> None:
    """Run an artifact on a file of inputs and print its outputs."""
    from evalmode.cli.printing import print_text
    from evalmode.cli.tensor_files import json_text, read_batch, require_writable, write_outputs
    from evalmode.predictor.artifact import load

    if out is not None:
        require_writable(out)
    predictor = load(artifact, allow_native=allow_native)
    signature = predictor.signature
    outputs = predictor.predict(read_batch(inputs, signature))
    if out is None:
        print_text(json_text(outputs))
    else:
        write_outputs(outputs, out)
    raise typer.Exit(0)
