"""`evalmode check TARGET`: what a plain `model.eval()` leaves, without test data."""

from __future__ import annotations

from typing import Annotated

import typer

from evalmode.cli.options import (
    AllowOption,
    Defaults,
    DeviceOption,
    Format,
    FormatOption,
    IgnoreOption,
    ProbesOption,
    SelectOption,
    WeightsOption,
    settings_for,
)

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command("check")
def check_target(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK",
            help="A task file, pkg.module, or pkg.module:attribute (a module, its class, or a function that makes it). "
            "Default: `task` under [tool.evalmode] in pyproject.toml.",
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="SHAPE",
            help="Shape of a random input, samples first: 8,3,224,224 or 8,128:int64, or 8,128:int64:30000 for whole "
            "numbers below 30000. Once per positional input. Default: the task's data.",
        ),
    ] = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    select: SelectOption = None,
    ignore: IgnoreOption = None,
    allow: AllowOption = None,
    probes: ProbesOption = None,
    output_format: FormatOption = Format.TEXT,
) -> None:
    """Test the contract on a model after a plain model.eval()."""
    from evalmode.certification import check_task, module_of
    from evalmode.cli.inputs import batch_for, parse_input
    from evalmode.cli.printing import move_model, print_certificate, say, users_code
    from evalmode.fresh_process import load_seeded
    from evalmode.terminal import check_text

    defaults = Defaults(settings_for(target))
    selection = defaults.selection(select, ignore)
    reference = defaults.target(target, "check")
    chosen_probes = defaults.probes(probes)
    shapes = [parse_input(text) for text in inputs or ()]
    with users_code():
        task = load_seeded(reference, weights)
    if device is not None:
        task = move_model(task, device)
    texts, origin = defaults.inputs(inputs, has_data=task.test_data is not None or task.train_data is not None)
    shapes = shapes or [parse_input(text, origin) for text in texts]
    patterns = defaults.allow(allow, module_of(task))
    defaults.say_used()
    with users_code():
        batch, notes = batch_for(task, shapes, "--input" if inputs else "input")
    for note in (*task.notes, *notes):
        say(note)
    with users_code():
        found = check_task(task, batch, clauses=selection.clauses, allow=patterns, probes=chosen_probes)
    certificate = selection.applied(found)
    print_certificate(certificate, output_format, check_text)
    raise typer.Exit(0 if certificate.ok else 1)
