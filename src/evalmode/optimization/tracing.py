"""`torch.export` without its noise, and the line of the user's code that stopped it."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from evalmode.backends.quiet import one_at_a_time
from evalmode.finding import Place
from evalmode.observe.attribution import is_installed, is_user_file, line_place, place_of

__all__ = ["Stopped", "exported_graph", "quiet_torch"]

_SHAPES = "torch.fx.experimental.symbolic_shapes"


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why a model was not exported, and the line that stopped it as far as it is known."""

    reason: str
    place: Place = field(default_factory=Place)

    def __str__(self) -> str:
        if not self.place.file:
            return self.reason
        return f"{self.reason} ({self.place.file}:{self.place.line}: {self.place.source})"


def exported_graph(
    module: nn.Module, inputs: Sequence[Tensor], axes: Sequence[int | None], *, dynamic: bool, variadic: bool
) -> ExportedProgram | Stopped:
    """The graph of ATen operators of `module` on `inputs`; with `dynamic`, the batch axis may have any length.

    `axes` holds the batch axis of each input. `variadic` tells that `forward` takes `*tensors`.
    """
    shapes: Any = None
    if dynamic:
        batch = Dim("batch")
        each = tuple(None if axis is None else {axis % x.dim(): batch} for x, axis in zip(inputs, axes, strict=True))
        shapes = (each,) if variadic else each
    with quiet_torch(), _GuardWatch() as guards, torch.no_grad():
        try:
            return torch.export.export(module, tuple(inputs), dynamic_shapes=shapes, strict=False)
        except Exception as error:  # noqa: BLE001 - the user's code, and torch's own, may raise anything
            return Stopped(_reason_of(error), _place_of(error) or guards.place)


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep torch from printing what this thread makes it say: its loggers, its warnings, and graphs on `stderr`."""
    with one_at_a_time, _quiet_for(threading.get_ident()):
        yield


@contextlib.contextmanager
def _quiet_for(thread: int) -> Iterator[None]:
    before, sys.stderr = sys.stderr, _OnlyOthers(sys.stderr, thread)

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread and record.levelno >= logging.WARNING

    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]
    handlers = {handler for name in names for handler in logging.getLogger(name).handlers}
    for handler in handlers:
        handler.addFilter(of_others)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr = before
        for handler in handlers:
            handler.removeFilter(of_others)


class _OnlyOthers(io.TextIOBase):
    """A stream that drops what one thread writes: a failing export prints its graph there, logger or not."""

    def __init__(self, stream: Any, thread: int) -> None:
        self._stream = stream
        self._thread = thread

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else int(self._stream.write(text))

    def flush(self) -> None:
        self._stream.flush()


@dataclass(eq=False)
class _GuardWatch(logging.Handler):
    """The line that was running when the length of the batch axis was last asked about, or was fixed.

    torch says only afterwards that the axis was fixed; its logger speaks while the user's line is still on the stack.
    """

    latest: Place = field(default_factory=Place)
    fixed: Place | None = None

    def __post_init__(self) -> None:
        super().__init__(logging.INFO)
        self._thread = threading.get_ident()

    @property
    def place(self) -> Place:
        return self.fixed or self.latest

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread != self._thread:
            return
        text = str(record.msg)
        if "set_replacement" in text and self.fixed is None and "singleton" in record.getMessage():
            self.fixed = place_of("", frame=sys._getframe(1))  # noqa: SLF001 - the documented way to a stack
        elif "guard added" in text or "[guard added]" in record.getMessage():
            self.latest = place_of("", frame=sys._getframe(1))  # noqa: SLF001

    def __enter__(self) -> Self:
        logger = logging.getLogger(_SHAPES)
        self._level = logger.level
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *error: object) -> None:
        logger = logging.getLogger(_SHAPES)
        logger.setLevel(self._level)
        logger.removeHandler(self)


def _reason_of(error: BaseException) -> str:
    text = str(error).strip()
    if "specialized it to be a constant" in text or "Constraints violated" in text:
        fixed = "specialized it to be a constant" in text
        return "the code fixes the number of samples" if fixed else "the code limits the number of samples"
    if "data-dependent" in text:
        return "the code asks for a value of a tensor"
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:160]}" if first else type(error).__name__


def _place_of(error: BaseException) -> Place | None:
    """The innermost line of the user's own code on the way to `error`; that of an installed package for want of one."""
    best: Place | None = None
    chosen_installed = True
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.lineno is None or frame.filename.startswith("<") or not is_user_file(frame.filename):
            continue
        installed = is_installed(frame.filename)
        if best is None or not installed or chosen_installed:
            best, chosen_installed = line_place("", frame.filename, frame.lineno), installed
    return best
