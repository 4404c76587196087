"""`evalmode certify TASK`: the whole way in one command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    begins_as_artifact,
    settings_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from evalmode.certificate import Certificate
    from evalmode.predictor.optimized import OptimizedPredictor

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


LimitOption = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=1, help="Evaluate the first N samples only.")
]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder for certificate.json, model.evalmode and report.html (default: here; with --format json only if "
        "given).",
        file_okay=False,
    ),
]
BudgetOption = Annotated[
    float | None,
    typer.Option("--budget", metavar="S", min=0, help="Seconds to search for a faster plan; 0: none.  [default: 60]"),
]


@app.command("certify", short_help="Check, optimise and evaluate; write certificate and report.")
def certify_task(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK",
            help="A task file, pkg.module, or pkg.module:attribute. Default: `task` under [tool.evalmode] in "
            "pyproject.toml.",
        ),
    ] = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    limit: LimitOption = None,
    select: SelectOption = None,
    ignore: IgnoreOption = None,
    allow: AllowOption = None,
    probes: ProbesOption = None,
    out: FolderOption = None,
    budget: BudgetOption = None,
    output_format: FormatOption = Format.TEXT,
) -> None:
    """Check a model, find its fastest plan, evaluate its test data, and write a certificate and a report."""
    from evalmode.cli.printing import Progress, move_model, print_certificate, users_code, writable_folder
    from evalmode.cli.result_files import is_report
    from evalmode.fresh_process import load_seeded
    from evalmode.terminal import certificate_text

    defaults = Defaults(settings_for(task))
    selection = defaults.selection(select, ignore)
    reference = defaults.target(task, "certify")
    chosen_probes = defaults.probes(probes)
    folder = writable_folder(out or Path()) if out is not None or output_format is not Format.JSON else None
    with users_code():
        loaded = load_seeded(reference, weights)
    from evalmode.certification import certified

    patterns = defaults.allow(allow, loaded.model)
    defaults.say_used()
    if device is not None:
        loaded = move_model(loaded, device)
    with Progress(sys.stderr) as progress, users_code():
        found, fast = certified(
            loaded,
            device=device,
            limit=limit,
            clauses=selection.clauses,
            allow=patterns,
            probes=chosen_probes,
            budget_s=budget,
            on_progress=progress.show,
        )
    certificate = selection.applied(found)
    steps: list[tuple[str, str]] = []
    if folder is not None:
        earlier = _content(folder / "certificate.json")
        steps.append(("certificate", str(certificate.save(folder / "certificate.json"))))
        written: list[tuple[str, str]] = []
        if fast is not None:
            fast.attach(certificate)
            written = _model_step(fast, folder / "model.evalmode")
        if not written:
            _remove_earlier(folder / "model.evalmode", lambda path: _carries(path, earlier))
        steps += written
        drawn = _report_step(certificate, folder / "report.html")
        if not drawn:
            _remove_earlier(folder / "report.html", is_report)
        steps += drawn
    steps += _next_steps(certificate, reference)
    print_certificate(certificate, output_format, lambda made: certificate_text(made, next_steps=steps))
    raise typer.Exit(0 if certificate.ok else 1)


def _model_step(fast: OptimizedPredictor, path: Path) -> list[tuple[str, str]]:
    """The artifact; where no plan can be written into a file, that is said and the certificate stands."""
    from evalmode.backends.catalog import backend_named
    from evalmode.cli.printing import saved_artifact, say
    from evalmode.errors import ArtifactError

    try:
        saved = str(saved_artifact(fast, path))
    except ArtifactError as error:
        say(f"no model.evalmode: {error.got}")
        return []
    native = any(backend_named(shape.backend).native_code for shape in fast.plan.configurations)
    return [("model", f"{saved}   machine code: loads with --allow-native" if native else saved)]


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _carries(path: Path, certificate: bytes | None) -> bool:
    """Whether `path` is the artifact of the `certificate` that was replaced; any other one is said to stay."""
    from evalmode.cli.printing import say
    from evalmode.errors import EvalmodeError
    from evalmode.predictor.artifact import inspect_artifact

    if not begins_as_artifact(path):
        return False
    try:
        carried = inspect_artifact(path).certificate
    except EvalmodeError as error:
        say(f"{path} is not of this certificate: {error.got}")
        return False
    if carried is None or carried.to_json() != certificate:
        say(f"{path} is not of this certificate: it lay here before, and is left as it is")
        return False
    return True


def _remove_earlier(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """What an earlier run wrote would pass for that of the certificate that now lies beside it; others' files stay."""
    from evalmode.cli.printing import say

    if not path.is_file():
        return
    try:
        if not is_ours(path):
            return
        path.unlink()
    except OSError as error:
        say(f"{path} is of an earlier run, not of this certificate, and cannot be removed: {error.strerror}")
    else:
        say(f"removed {path}: it was of an earlier run, not of this certificate")


def _report_step(certificate: Certificate, path: Path) -> list[tuple[str, str]]:
    """The page; where it cannot be drawn here, that is said with what to install, and the certificate stands."""
    from evalmode.cli.printing import say
    from evalmode.errors import MissingExtraError, UsageError
    from evalmode.report.page import write_report

    try:
        return [("report", str(write_report(path, certificate)))]
    except (MissingExtraError, UsageError) as error:
        say(f"no report.html: {error.got}: {error.fix}")
        return []


def _next_steps(certificate: Certificate, reference: str) -> list[tuple[str, str]]:
    """Commands that lead on from here: for an example of a clone, to the gallery and to a task of one's own."""
    examples = Path("examples")
    if not Path(reference).resolve().is_relative_to(examples.resolve()):
        return []
    gallery = (examples / "broken").is_dir() and Path("Makefile").is_file()
    return (
        [("break it", "make gallery       your model  evalmode init")] if gallery else [("your model", "evalmode init")]
    )
