"""Options that several commands share: read, and completed by what the project has set."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evalmode.cli.printing import say
from evalmode.errors import UsageError
from evalmode.settings.project_file import Probes, Settings, read_settings

if TYPE_CHECKING:
    from evalmode.settings.selection import ClauseSelection

__all__ = [
    "AllowOption",
    "Defaults",
    "DeviceOption",
    "Format",
    "FormatOption",
    "IgnoreOption",
    "LimitOption",
    "NativeOption",
    "OnBadSample",
    "OnBadSampleOption",
    "ProbesOption",
    "SelectOption",
    "WeightsOption",
    "begins_as_artifact",
    "is_artifact",
    "settings_for",
]


class OnBadSample(enum.StrEnum):
    """What happens at a sample that cannot be read, run or measured."""

    ERROR = "error"
    SKIP = "skip"


class Format(enum.StrEnum):
    """How a result is printed."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


WeightsOption = Annotated[
    str | None, typer.Option("--weights", metavar="F", help="Weights, handed to the task's model(weights).")
]
DeviceOption = Annotated[str | None, typer.Option("--device", metavar="D", help="Where to run: cpu, cuda, cuda:1, ...")]
SelectOption = Annotated[
    list[str] | None,
    typer.Option("--select", metavar="NAME", help="Only these clauses and codes: finite,EM171,EM12 (or repeated)."),
]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="NAME", help="Leave these clauses and codes out of the verdict, and say so."),
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="MODULE", help='Allow what is found at this module path, e.g. "*.mc_dropout".'),
]
ProbesOption = Annotated[Probes | None, typer.Option("--probes", help="How much is tried.  [default: default]")]
FormatOption = Annotated[
    Format, typer.Option("--format", help="Print text, the certificate as JSON, or text with GitHub annotations.")
]


def _limit(text: str) -> float:
    try:
        return math.inf if text == "inf" else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no whole number, and not inf") from None


LimitOption = Annotated[
    float | None,
    typer.Option(
        "--limit",
        metavar="N",
        parser=_limit,
        help="Evaluate the first N samples only; inf: a stream without length, to its end.",
    ),
]
OnBadSampleOption = Annotated[
    OnBadSample, typer.Option("--on-bad-sample", help="Stop at a bad sample, or leave it out and count it.")
]
NativeOption = Annotated[
    bool, typer.Option("--allow-native", help="Load machine code from an artifact: only from whom you trust.")
]


def is_artifact(name: str) -> bool:
    """Whether an artifact is meant: by the name, or by how the file opens."""
    return name.endswith(".evalmode") or (Path(name).is_file() and begins_as_artifact(name))


def begins_as_artifact(path: str | Path) -> bool:
    """Whether the file opens as an artifact does; whether it is a sound one is said when it is read."""
    from evalmode.predictor.artifact_file import MAGIC

    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def settings_for(target: str | None) -> Settings:
    """What the project has set: looked for from the folder of a task file upward, else from the current folder."""
    where = (target or "").partition(":")[0]
    is_file = where.endswith(".py") or "/" in where
    try:
        return read_settings(Path(where).expanduser().parent if is_file else Path())
    except RuntimeError as error:  # of the home of an unknown user
        raise UsageError(f"there is no file {where}: {error}", expected="a task file") from error


class Defaults:
    """What a command takes where an option is not given. An option that is given replaces the file's value.

    `used` are the keys of the file that were taken; `say_used` says them.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.used: list[str] = []

    def target(self, given: str | None, command: str) -> str:
        """The task to work on.

        Raises:
            UsageError: none was given, and the project has none.
        """
        if given is not None:
            return given
        if not self.settings.task:
            raise UsageError(
                f"evalmode {command} was given no TASK",
                expected="a task file, pkg.module, or pkg.module:attribute",
                fix='evalmode init writes a task file; task = "task.py" under [tool.evalmode] in pyproject.toml '
                "makes it the default",
            )
        self.used.append("task")
        return self.settings.task_reference()

    def probes(self, given: Probes | None) -> Probes:
        """How much is tried."""
        if given is None and "probes" in self.settings.keys:
            self.used.append("probes")
        return given or self.settings.probes

    def inputs(self, given: Sequence[str] | None, *, has_data: bool) -> tuple[tuple[str, ...], str]:
        """Shapes of random inputs, and who gave them. Those of the file stand in for data, never in its place."""
        if given is not None or has_data or not self.settings.inputs:
            return tuple(given or ()), "--input"
        self.used.append("inputs")
        return self.settings.inputs, f"`inputs` of {self.settings.origin}"

    def allow(self, given: Sequence[str] | None, model: object) -> tuple[str, ...]:
        """Patterns of module paths at which findings are intended."""
        from evalmode.settings.allowed import split_patterns

        if given is not None:
            return tuple(pattern for pattern in given if pattern)
        fitting, others = split_patterns(self.settings.allow, model)
        if fitting:
            self.used.append("allow")
        for pattern in others:
            say(f"settings: {pattern!r} of `allow` matches no module of this model")
        return fitting

    def say_used(self) -> None:
        """Say on standard error which file was used, and for what."""
        used = [key for key in self.settings.keys if key in self.used]
        if used:
            say(f"settings: {', '.join(used)} from {self.settings.origin}")

    def selection(self, select: Sequence[str] | None, ignore: Sequence[str] | None) -> ClauseSelection:
        """Which clauses are tested and which codes count.

        Raises:
            UsageError: a name is no clause or code, or nothing is left.
        """
        from evalmode.settings.selection import complete_selection, read_names

        selection, used = complete_selection(
            read_names(select, "--select"), read_names(ignore, "--ignore"), self.settings
        )
        self.used += used
        return selection
