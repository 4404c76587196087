"""What commands share: results on standard output, progress on standard error, the model moved to its device."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from evalmode.atomic_file import is_no_file
from evalmode.errors import UsageError

if TYPE_CHECKING:
    import rich.progress

    from evalmode.certificate import Certificate
    from evalmode.predictor.optimized import OptimizedPredictor
    from evalmode.task import Task

__all__ = [
    "Progress",
    "UnwrittenError",
    "apart",
    "move_model",
    "print_bytes",
    "print_certificate",
    "print_json",
    "print_text",
    "saved_artifact",
    "say",
    "users_code",
    "writable_file",
    "writable_folder",
    "writing",
]

_STAGES = {"load": "loading", "check": "checking the contract", "evaluate": "evaluating"}


def users_code() -> contextlib.AbstractContextManager[object]:
    """While code of the user's runs: what it prints goes to standard error, so that standard output is ours alone."""
    return contextlib.redirect_stdout(sys.stderr)


class UnwrittenError(Exception):
    """Standard output cannot be written: its cause is the `OSError`, which is none of the user's data."""


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """While a result is printed.

    Raises:
        UnwrittenError: it cannot be.
    """
    try:
        yield
    except OSError as error:
        raise UnwrittenError from error


def print_text(text: str) -> None:
    """Print a result and flush it, so that a reader who has gone is noticed here."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    with writing():
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def print_certificate(certificate: Certificate, form: str, text_of: Callable[[Certificate], str]) -> None:
    """A certificate as text, as JSON, or as text after its GitHub annotations."""
    if form == "json":
        print_json(certificate)
        return
    if form == "github":
        from evalmode.cli.github import workflow_commands
        from evalmode.terminal import look

        for line in workflow_commands(certificate, unicode=look().unicode):
            print_text(line)
    print_text(text_of(certificate))


def print_json(certificate: Certificate) -> None:
    """The certificate, byte for byte as it is written to a file, where standard output takes bytes."""
    print_bytes(certificate.to_json())


def print_bytes(data: bytes) -> None:
    """JSON as it is written to a file, UTF-8 whatever the terminal's encoding, where standard output takes bytes."""
    buffer = getattr(sys.stdout, "buffer", None)
    with writing():
        if buffer is None:
            sys.stdout.write(data.decode())
        else:
            sys.stdout.flush()
            buffer.write(data)
        sys.stdout.flush()


def say(note: str) -> None:
    """Something to know beside the result, on standard error."""
    from evalmode.terminal import displayable, look

    print(displayable(note, unicode=look(sys.stderr).unicode), file=sys.stderr)


def saved_artifact(predictor: OptimizedPredictor, path: Path) -> Path:
    """Write the predictor to `path`; what is to be known about it goes to standard error.

    Raises:
        ArtifactError: nothing of it can be written.
    """
    import warnings

    from evalmode.errors import EvalmodeWarning

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", EvalmodeWarning)
        saved = predictor.save(path)
    for warning in told:
        say(str(warning.message))
    return saved


def writable_folder(folder: Path) -> Path:
    """The folder, made if need be, before any work is done for what will be written there.

    Raises:
        UsageError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}", fix="--out DIR") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write to the folder {folder.resolve()}", fix="--out DIR")
    return folder


def writable_file(path: Path, option: str) -> None:
    """Find out, before any work is done for it, whether a file of that name can be written.

    Raises:
        UsageError: it cannot.
    """
    try:
        if is_no_file(path):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror}", fix=f"{option} FILE") from error


def apart(written: Mapping[str, Path | None], read: Iterable[str | os.PathLike[str] | None]) -> None:
    """Refuse options that would write one file twice, or over what the command reads.

    Raises:
        UsageError: two of the paths are one file.
    """
    known: dict[Path, str] = {}
    for given in read:
        if given is not None:
            with contextlib.suppress(OSError, RuntimeError):
                known[Path(given).expanduser().resolve()] = "what is read"
    for option, path in written.items():
        if path is None:
            continue
        place = path.resolve()
        if place in known:
            raise UsageError(
                f"{option} {path} is {known[place]}, which would be lost",
                expected="a file of its own for each",
                fix=f"{option} another.file",
            )
        known[place] = f"what {option} writes"


def move_model(task: Task, device: str) -> Task:
    """The task with its model on `device`. The command line owns the model that it loaded, so it moves it in place."""
    from torch import nn

    from evalmode.certification import usable_device

    chosen = usable_device(device)
    return dataclasses.replace(task, model=task.model.to(chosen)) if isinstance(task.model, nn.Module) else task


class Progress:
    """A bar on standard error while a command works; nothing where no terminal listens.

    Example:
        >>> with Progress(sys.stderr) as progress:
        ...     progress.show("evaluate", 64, 540)
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: rich.progress.Progress | None = None
        self._stage = ""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if not self._stream.isatty():
            return self
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (
            SpinnerColumn("line"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bar = self._stack.enter_context(Bar(*columns, console=Console(file=self._stream), transient=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def show(self, stage: str, done: int, total: int | None) -> None:
        """Say that `done` of `total` (None if unknown) steps of a stage are done."""
        if self._bar is None:
            return
        if stage != self._stage:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(_STAGES.get(stage, stage), total=total)
            self._stage = stage
        self._bar.update(self._bar.task_ids[-1], completed=done, total=total)
