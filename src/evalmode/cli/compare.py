"""`evalmode compare A B [C ...]`: whether one model is better than another on the same samples."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from evalmode.cli.options import (
    DeviceOption,
    LimitOption,
    NativeOption,
    OnBadSample,
    OnBadSampleOption,
    is_artifact,
)
from evalmode.errors import UsageError

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

EPILOG = (
    "Exit status: 0, or 1 where a model is significantly worse than A (with --margin: and not shown to be worse by "
    "less), 2 where they cannot be compared."
)


class CompareFormat(enum.StrEnum):
    """How the comparison is printed."""

    TEXT = "text"
    JSON = "json"


TaskWeightsOption = Annotated[
    list[str] | None,
    typer.Option("--weights", metavar="F", help="Weights of a task among the models; one for each, in order."),
]
MarginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--margin",
        metavar="M",
        help="The largest difference that does not matter, in units of the metric: 0.01 (one point of accuracy), "
        'or "log loss=0.02". May be repeated.',
    ),
]


@app.command("compare", short_help="Compare models on the same samples: what differs, how surely.", epilog=EPILOG)
def compare_models(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C ...]",
            help="Parquet files of kept predictions, tasks, or artifacts (model.evalmode). A is what the others are "
            "compared with.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="TASK", help="The task on whose test data models are evaluated first."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="Only this metric. May be repeated. [default: all in common]"),
    ] = None,
    margin: MarginOption = None,
    confidence: Annotated[float, typer.Option("--confidence", metavar="C", help="Of intervals and tests.")] = 0.95,
    groups: Annotated[
        str | None, typer.Option("--groups", metavar="COLUMN", help="A kept column: whole groups are resampled.")
    ] = None,
    higher_is_better: Annotated[
        bool | None,
        typer.Option("--higher-is-better/--lower-is-better", help="For metrics of your own that do not say it."),
    ] = None,
    weights: TaskWeightsOption = None,
    device: DeviceOption = None,
    limit: LimitOption = None,
    on_bad_sample: OnBadSampleOption = OnBadSample.ERROR,
    allow_native: NativeOption = False,
    output_format: Annotated[
        CompareFormat, typer.Option("--format", help="Print text, or everything as JSON.")
    ] = CompareFormat.TEXT,
) -> None:
    """Compare models on the same samples: differences, intervals, tests, and what flipped."""
    if len(models) < 2:
        raise UsageError("evalmode compare was given one model", expected="at least two", fix="evalmode compare A B")
    margins = _margins(margin)
    from evalmode.cli.printing import print_bytes, print_text, users_code
    from evalmode.cli.result_files import refuse_predictions
    from evalmode.evaluation.comparison import compare

    refuse_predictions(data)
    with users_code():
        held = None if data is None else _task(data, None, for_data=True)
        given = _contestants(models, weights, allow_native=allow_native)
        skip = None if on_bad_sample is OnBadSample.ERROR else on_bad_sample.value
        options = {"device": device, "limit": limit, "on_bad_sample": skip}
        comparison = compare(
            *given,
            data=held,
            metric=metric or None,
            margin=margins,
            confidence=confidence,
            groups=groups,
            higher_is_better=higher_is_better,
            names=None if len(set(models)) < len(models) else [_label(name, models) for name in models],
            **{name: value for name, value in options.items() if value is not None},
        )
    if output_format is CompareFormat.JSON:
        print_bytes(comparison.to_json())
    else:
        print_text(str(comparison))
    raise typer.Exit(0 if comparison.ok else 1)


def _contestants(models: list[str], weights: list[str] | None, *, allow_native: bool) -> list[Any]:
    """A file of results or an artifact as its path, anything else as a task with its weights.

    Raises:
        UsageError: there are not as many weights as tasks.
        ArtifactError: an artifact that may bring machine code cannot be used.
    """
    from evalmode.cli.printing import say

    tasks = [name for name in models if _is_task(name)]
    if weights is not None and len(weights) != len(tasks):
        told = f"{len(tasks)} of the models {'is a task' if len(tasks) == 1 else 'are tasks'}"
        raise UsageError(
            f"{len(weights)} --weights were given, and {told}",
            expected="--weights once for each task, in their order",
            fix=" ".join(f"{name} --weights FILE" for name in tasks) or "leave --weights out",
        )
    if weights is None:
        for name in dict.fromkeys(tasks):
            say(f"{name}: with the weights that the task itself gives; --weights FILE names others")
    chosen = iter(weights if weights is not None else [None] * len(tasks))
    found: list[Any] = [_task(name, next(chosen)) if _is_task(name) else name for name in models]
    if not allow_native:
        return found
    from evalmode.predictor.artifact import load

    return [
        load(one, allow_native=True) if one is name and is_artifact(name) else one
        for one, name in zip(found, models, strict=True)
    ]


def _is_task(name: str) -> bool:
    path = Path(name)
    is_source = path.suffix in {".py", ".ipynb"} or ".py:" in name
    return path.suffix not in {".parquet", ".evalmode"} and (is_source or not path.is_file())


def _task(reference: str, weights: str | None, *, for_data: bool = False) -> Any:
    from evalmode.fresh_process import load_seeded

    return load_seeded(reference, weights, for_data=for_data)


def _label(name: str, models: list[str]) -> str:
    """The file's own name, where it tells the models apart."""
    names = [Path(each).name for each in models]
    return Path(name).name if len(set(names)) == len(names) else name


def _margins(given: list[str] | None) -> Any:
    """What --margin says: a number for all, or numbers by name.

    Raises:
        UsageError: it is neither.
    """
    if not given:
        return None
    named: dict[str, float] = {}
    for text in given:
        name, separator, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise UsageError(
                f"--margin {text!r} cannot be read", expected='a number, or "METRIC=NUMBER"', fix="--margin 0.01"
            ) from None
        if not separator:
            if len(given) > 1:
                raise UsageError(
                    f"--margin {text} stands beside others", expected="one number, or each with its metric",
                    fix='--margin accuracy=0.01 --margin "log loss=0.02"',
                )  # fmt: skip
            return value
        named[name] = value
    return named
