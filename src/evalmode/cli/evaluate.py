"""`evalmode evaluate TASK` and `evalmode evaluate ARTIFACT --data TASK`: a test-set result with intervals."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evalmode.cli.options import (
    Defaults,
    DeviceOption,
    LimitOption,
    NativeOption,
    OnBadSample,
    OnBadSampleOption,
    WeightsOption,
    is_artifact,
    settings_for,
)

if TYPE_CHECKING:
    from evalmode.evaluation.result import Evaluation
    from evalmode.task import Task

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


class EvaluationFormat(enum.StrEnum):
    """How the evaluation is printed."""

    TEXT = "text"
    JSON = "json"


DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="What to evaluate on: a task, whose test data, split and metrics are taken, or a Parquet file.",
    ),
]
MetricsOption = Annotated[
    list[str] | None, typer.Option("--metric", metavar="NAME", help="Only this metric; may be repeated.")
]
SlicesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slice", metavar="NAME", help="Figures by class, or by this column; NAME/4 by its quarters; may be repeated."
    ),
]
JournalOption = Annotated[
    Path | None,
    typer.Option("--journal", metavar="FILE", help="Keep what is done here; the same command goes on after a stop."),
]
KeepOption = Annotated[
    Path | None,
    typer.Option("--keep-predictions", metavar="FILE", help="Write every sample to this Parquet file.", dir_okay=False),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the result as JSON.", dir_okay=False)
]
BatchSizeOption = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", min=1, help="Samples that are read at a time.")
]
ConfidenceOption = Annotated[float, typer.Option("--confidence", metavar="C", help="Confidence of the intervals.")]


WorkersOption = Annotated[int, typer.Option("--workers", metavar="N", min=0, help="Processes that read samples.")]
ExactOption = Annotated[
    bool, typer.Option("--exact/--as-it-comes", help="As it comes: batches of a DataLoader that shuffles or pads.")
]


@app.command("evaluate", short_help="Evaluate a model on its test data: figures and intervals.")
def evaluate_task(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK|ARTIFACT",
            help="A task file, pkg.module, pkg.module:attribute, or a model.evalmode. Default: `task` under "
            "[tool.evalmode] in pyproject.toml.",
        ),
    ] = None,
    data: DataOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    metrics: MetricsOption = None,
    slices: SlicesOption = None,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = None,
    workers: WorkersOption = 0,
    confidence: ConfidenceOption = 0.95,
    journal: JournalOption = None,
    keep_predictions: KeepOption = None,
    on_bad_sample: OnBadSampleOption = OnBadSample.ERROR,
    exact: ExactOption = True,
    out: OutOption = None,
    allow_native: NativeOption = False,
    output_format: Annotated[
        EvaluationFormat, typer.Option("--format", help="Print the figures, or the result as JSON.")
    ] = EvaluationFormat.TEXT,
) -> None:
    """Evaluate a model on its test data: every sample once, every figure with its interval."""
    from evalmode.cli.printing import apart, users_code, writable_file
    from evalmode.cli.result_files import refuse_predictions
    from evalmode.evaluation.evaluator import evaluate

    defaults = Defaults(settings_for(None if target is not None and is_artifact(target) else target))
    written = {"--out": out, "--keep-predictions": keep_predictions, "--journal": journal}
    apart(written, (target, data, weights))
    for option, path in written.items():
        if path is not None:
            writable_file(path, option)
    refuse_predictions(data, files=True)
    model, rows, options = _loaded(target, data, weights, device, defaults, allow_native=allow_native)
    defaults.say_used()
    if metrics:
        own = options.get("metrics", getattr(model, "metrics", None))
        options["metrics"] = _named(metrics, own)
    with users_code():
        evaluation = evaluate(
            model,
            rows,
            **options,
            slices=_slices(slices),
            limit=limit,
            batch_size=batch_size or "auto",
            workers=workers,
            confidence=confidence,
            journal=journal,
            keep_predictions=keep_predictions,
            on_bad_sample=on_bad_sample.value,
            exact=exact,
        )
    _print(evaluation, out, keep_predictions, output_format)
    raise typer.Exit(0)


def _print(evaluation: Evaluation, out: Path | None, kept: Path | None, output_format: EvaluationFormat) -> None:
    from evalmode.cli.printing import print_bytes, print_text, say
    from evalmode.terminal.evaluations import evaluation_text

    steps = [] if out is None else [("result", str(evaluation.save(out)))]
    if kept is not None:
        steps.append(("predictions", str(kept)))
    if output_format is EvaluationFormat.JSON:
        print_bytes(evaluation.to_json())
        for label, written in steps:
            say(f"{label}: {written}")
        return
    print_text(
        evaluation_text(evaluation.record, inferred=evaluation.inferred, subject=evaluation.subject, next_steps=steps)
    )


def _loaded(
    target: str | None,
    data: str | None,
    weights: str | None,
    device: str | None,
    defaults: Defaults,
    *,
    allow_native: bool,
) -> tuple[Any, Any, dict[str, Any]]:
    """The model or predictor, its data, and what the task says of both."""
    from evalmode.cli.printing import users_code
    from evalmode.errors import UsageError
    from evalmode.fresh_process import load_seeded

    if target is not None and is_artifact(target):
        if data is None:
            raise UsageError(
                f"evalmode evaluate {target} was given no data",
                expected="a task with test data, or a Parquet file",
                fix=f"evalmode evaluate {target} --data task.py",
            )
        if weights is not None:
            raise UsageError("--weights was given beside an artifact, which has its own", fix="leave --weights out")
        from evalmode.predictor.artifact import load

        predictor = load(target, allow_native=allow_native, device=device)
        if data.endswith(".parquet"):
            return predictor, data, {}
        with users_code():
            task = load_seeded(data, None, for_data=True)
            return predictor, _test_data(task), _parts(task, forward=False)
    reference = defaults.target(target, "evaluate")
    with users_code():
        task = load_seeded(reference, weights)
        options = {**_parts(task, forward=True), "device": device}
        if data is None:
            return task, None, {"device": device}
        if data.endswith(".parquet"):
            return task.model, data, options
        other = load_seeded(data, None, for_data=True)
        options |= {name: part for name, part in _parts(other, forward=False).items() if part is not None}
        return task.model, _test_data(other), options


def _named(metrics: list[str], own: object) -> Any:
    """The metrics of these names: the task's own where it has them, else those of the catalog."""
    if isinstance(own, Mapping) and any(name in own for name in metrics):
        return {name: own.get(name, name) for name in metrics}
    return list(metrics)


def _parts(task: Task, *, forward: bool) -> dict[str, Any]:
    names = ("metrics", "split", "prediction", "loss", *(("forward",) if forward else ()))
    return {name: getattr(task, name) for name in names}


def _test_data(task: Task) -> Any:
    from evalmode.errors import TaskError

    data = task.data("test_data")
    if data is None:
        raise TaskError(
            f"{task.home} has no test data",
            expected="def test_data() that returns a DataLoader, a Dataset, or a pair (inputs, targets)",
            fix="add it to the task",
        )
    return data


def _slices(given: list[str] | None) -> list[Any] | None:
    """`class`, a column, or `column/4` for its quarters."""
    if not given:
        return None
    found: list[Any] = []
    for name in given:
        column, slash, number = name.rpartition("/")
        found.append((column, int(number)) if slash and column and number.isdigit() else name)
    return found
