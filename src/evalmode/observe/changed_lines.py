"""Find the line after which something that a module holds is not as it was, by looking from line to line.

Slow by design: it runs only after a pass is known to have changed it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from torch import nn

from evalmode.finding import Place
from evalmode.observe.attribution import ModuleStack, is_installed, is_user_file, line_place
from evalmode.observe.line_tracer import LineTracer
from evalmode.observe.other_threads import followed_by
from evalmode.observe.state import Difference, StateChange

__all__ = ["changed_lines"]


def changed_lines(
    run: Callable[[], Any], model: nn.Module | None, differences: Sequence[Difference]
) -> dict[StateChange, Place]:
    """The first line of user code in `run()` after which each of `differences` shows; without one it is left out.

    `run` has to start from the state that the differences are measured from.
    """
    with ModuleStack(model) as stack:
        tracer = _LineTracer(stack, differences)
        with followed_by(tracer), tracer:
            run()
    return tracer.found


class _LineTracer(LineTracer):
    """Remembers the last line of user code and looks, at the next event, what it changed."""

    def __init__(self, stack: ModuleStack, differences: Sequence[Difference]) -> None:
        super().__init__()
        self.found: dict[StateChange, Place] = {}
        self._stack = stack
        self._pending = [difference for difference in differences if not difference.differs()]
        self._frames: list[tuple[FrameType, str]]
        self._last: tuple[str, str, int] | None
        self.begin()
        self._is_user: dict[str, bool] = {}

    def call(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if name not in self._is_user:
            self._is_user[name] = is_user_file(name)
        if not self._is_user[name] or not self._pending:
            return None
        self.compare()
        self._frames.append((frame, self._stack.top))
        return self.line

    def line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.compare()
        if event == "line":
            self._last = self._line_of(len(self._frames) - 1)
        elif event == "return":
            while self._frames and self._frames.pop()[0] is not frame:
                continue
            self._last = self._line_of(len(self._frames) - 1) if self._frames else self._last
        return self.line

    def compare(self) -> None:
        if self._last is None:
            return
        for difference in [item for item in self._pending if item.differs()]:
            with contextlib.suppress(ValueError):  # another thread has told it meanwhile
                self._pending.remove(difference)
                self.found[difference.change] = line_place(*self._last)

    def on_another_thread(self) -> _LineTracer:
        """One that adds to what this one has found."""
        other = copy.copy(self)
        other.begin()
        return other

    def begin(self) -> None:
        """Forget where this thread is, but not what is looked for."""
        self._frames = []
        self._last = None

    def _line_of(self, position: int) -> tuple[str, str, int]:
        """The line of a running function; code of the user's own is preferred to a package it calls in one module."""
        frame, module = self._frames[position]
        for outer, path in reversed(self._frames[: position + 1]):
            if path != module:
                break
            if not is_installed(outer.f_code.co_filename):
                return module, outer.f_code.co_filename, outer.f_lineno
        return module, frame.f_code.co_filename, frame.f_lineno
