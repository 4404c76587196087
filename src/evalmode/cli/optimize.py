"""`evalmode optimize TASK`: search for the fastest verified plan, and write it into one file."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from evalmode.cli.options import Defaults, DeviceOption, WeightsOption, settings_for

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


class ToleranceKind(enum.StrEnum):
    """How much the plan may differ from the model."""

    FP32 = "fp32"
    TASK = "task"


class Objective(enum.StrEnum):
    """What is to be fast."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"


class PlanFormat(enum.StrEnum):
    """How the search is printed."""

    TEXT = "text"
    JSON = "json"


OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FILE", help="The artifact to write.  [default: model.evalmode]", dir_okay=False
    ),
]
ToleranceOption = Annotated[
    ToleranceKind,
    typer.Option(
        "--tolerance",
        help="fp32: as exact as the model itself is in fp32. task: on the task's test data at most 2 % of the answers "
        "change, and the metric loses at most one point.",
    ),
]
ObjectiveOption = Annotated[
    Objective, typer.Option("--objective", help="Many samples a second, or a quick answer to one.")
]
BatchSizesOption = Annotated[
    list[int] | None,
    typer.Option("--batch-size", metavar="N", min=1, help="A batch size of your callers; may be repeated."),
]
BackendsOption = Annotated[
    list[str] | None, typer.Option("--backend", metavar="NAME", help="Only this back end; may be repeated.")
]
PassesOption = Annotated[
    list[str] | None, typer.Option("--pass", metavar="NAME", help="Only this pass, or `none`; may be repeated.")
]
StableOption = Annotated[
    bool, typer.Option("--stable/--no-stable", help="A sample gets the same bits whatever its companions.")
]
BudgetOption = Annotated[float, typer.Option("--budget", metavar="S", min=1, help="Seconds for the whole search.")]
PlanFormatOption = Annotated[
    PlanFormat, typer.Option("--format", help="Print the table of plans, or the certificate as JSON.")
]


@app.command("optimize", short_help="Find the fastest way to give the same answers; write it.")
def optimize_task(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK",
            help="A task file, pkg.module, or pkg.module:attribute. Default: `task` under [tool.evalmode] in "
            "pyproject.toml.",
        ),
    ] = None,
    out: OutOption = None,
    tolerance: ToleranceOption = ToleranceKind.FP32,
    objective: ObjectiveOption = Objective.THROUGHPUT,
    batch_sizes: BatchSizesOption = None,
    backends: BackendsOption = None,
    passes: PassesOption = None,
    stable: StableOption = True,
    budget: BudgetOption = 60,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    output_format: PlanFormatOption = PlanFormat.TEXT,
) -> None:
    """Find the fastest way to run a model that gives the same answers, and save it as one file."""
    from evalmode.certification import optimize_loaded
    from evalmode.cli.printing import (
        Progress,
        apart,
        print_json,
        print_text,
        saved_artifact,
        say,
        users_code,
        writable_folder,
    )
    from evalmode.fresh_process import load_seeded
    from evalmode.terminal import duration
    from evalmode.terminal.plans import byte_size, plans_text

    defaults = Defaults(settings_for(task))
    reference = defaults.target(task, "optimize")
    target = out or Path("model.evalmode")
    apart({"--out": target}, (reference.partition(":")[0], weights))
    writable_folder(target.parent)
    with users_code():
        loaded = load_seeded(reference, weights)
    defaults.say_used()
    with Progress(sys.stderr) as progress, users_code():
        fast, notes = optimize_loaded(
            loaded,
            device=device,
            tolerance=tolerance.value,
            objective=objective.value,
            batch_sizes=tuple(batch_sizes) if batch_sizes else None,
            backends=tuple(backends) if backends else None,
            passes=None if passes is None else tuple(name for name in passes if name != "none"),
            stable=stable,
            budget_s=budget,
            on_progress=progress.show,
        )
    for note in (*loaded.notes, *notes):
        say(note)
    record = fast.certificate.optimization if fast.certificate is not None else None
    # What was found is told first: a plan that no file can hold is still a result.
    if output_format is PlanFormat.JSON and fast.certificate is not None:
        print_json(fast.certificate)
    elif record is not None:
        print_text(plans_text(record))
    saved = saved_artifact(fast, target)
    if output_format is PlanFormat.TEXT and record is not None:
        print_text(f"\n{saved}  {byte_size(saved.stat().st_size)}, {duration(record.seconds)}")
    raise typer.Exit(0)
