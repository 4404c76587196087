"""`evalmode verify CERTIFICATE TASK|ARTIFACT`: test a certificate again here, and list what differs."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from evalmode.cli.options import Defaults, DeviceOption, NativeOption, WeightsOption, begins_as_artifact, settings_for

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

_SOURCES = (".py", ".ipynb")


class VerifyFormat(enum.StrEnum):
    """How the result is printed."""

    TEXT = "text"
    JSON = "json"


CertificateArgument = Annotated[
    Path, typer.Argument(metavar="CERTIFICATE", help="certificate.json, or an artifact that carries one.")
]
TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="TASK|ARTIFACT",
        help="A task, or an artifact (model.evalmode). Default: `task` under [tool.evalmode] in pyproject.toml, else "
        "CERTIFICATE where that is an artifact.",
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="TASK", help="The task whose test data, and model, an artifact is held against."),
]
BudgetOption = Annotated[
    float | None,
    typer.Option("--budget", metavar="S", min=0, help="Seconds to search for the plan anew; 0: none. [default: 60]"),
]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore",
        metavar="PART",
        help="Show differences in it, and do not count them: a part (model, environment, contract, plan, test set), or "
        "one result by its name, as threads or accuracy. May be repeated.",
    ),
]


@app.command(
    "verify",
    short_help="Test a certificate again here; list what differs.",
    epilog="Exit status: 0 nothing differs, 1 something does, 2 the command is wrong.",
)
def verify_certificate(
    certificate: CertificateArgument,
    target: TargetArgument = None,
    data: DataOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    budget: BudgetOption = None,
    ignore: IgnoreOption = None,
    allow_native: NativeOption = False,
    output_format: Annotated[
        VerifyFormat, typer.Option("--format", help="Print text, or everything as JSON.")
    ] = VerifyFormat.TEXT,
) -> None:
    """Test a certificate again here: what is the same, what differs, and what cannot be tested."""
    from evalmode.certification.retest import verify
    from evalmode.cli.printing import Progress, print_bytes, print_text, users_code
    from evalmode.cli.result_files import refuse_predictions
    from evalmode.errors import UsageError

    refuse_predictions(data)
    names = [name.strip() for text in ignore or () for name in text.split(",") if name.strip()]
    defaults = Defaults(settings_for(target))
    alone = target is None and not defaults.settings.task and certificate.is_file() and begins_as_artifact(certificate)
    reference = str(certificate) if alone else defaults.target(target, "verify")
    artifact = _is_artifact(reference)
    if not artifact and data is not None:
        raise UsageError(
            f"--data {data} beside a task, which has data of its own",
            expected="--data TASK with an artifact",
            fix=f"evalmode verify {certificate} {reference}",
        )
    if artifact and data is None and (weights is not None or device is not None):
        raise UsageError(
            f"{'--weights' if weights is not None else '--device'} beside an artifact, which has its own",
            expected="it with a task, or with --data TASK, whose model the artifact is held against",
            fix=f"evalmode verify {certificate} {reference}",
        )
    defaults.say_used()
    given: Any = reference if artifact else _loaded(reference, weights, device)
    held = _loaded(data, weights, device) if data is not None else None
    with Progress(sys.stderr) as progress, users_code():
        verification = verify(
            certificate,
            given,
            held,
            ignore=names,
            budget_s=budget,
            allow_native=allow_native,
            on_progress=progress.show,
        )
    if output_format is VerifyFormat.JSON:
        print_bytes(verification.to_json())
    else:
        print_text(str(verification))
    raise typer.Exit(0 if verification.ok else 1)


def _is_artifact(reference: str) -> bool:
    """A file that is no source is an artifact; whether it is a sound one is said when it is read."""
    path = Path(reference)
    return path.suffix == ".evalmode" or (path.is_file() and path.suffix not in _SOURCES)


def _loaded(reference: str, weights: str | None, device: str | None) -> Any:
    from evalmode.cli.printing import move_model, users_code
    from evalmode.fresh_process import load_seeded

    with users_code():
        task = load_seeded(reference, weights)
    return task if device is None else move_model(task, device)
