"""Find the line that moves Python's or numpy's random stream, by comparing the streams from line to line.

Slow by design: it runs only after a pass is known to have moved one of them.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn

from evalmode.finding import Place
from evalmode.observe.attribution import ModuleStack, is_user_file, line_place
from evalmode.observe.line_tracer import LineTracer
from evalmode.observe.other_threads import followed_by
from evalmode.observe.own_generators import OwnGenerator

__all__ = ["HostDraw", "find_host_draws"]


@dataclass(frozen=True, slots=True)
class HostDraw:
    """A move of a stream: `python`, `numpy` or `torch` (seeded inside the pass), and where."""

    stream: str
    place: Place


def find_host_draws(
    run: Callable[[], Any],
    model: nn.Module | None,
    streams: Collection[str] = ("python", "numpy"),
    own: Sequence[OwnGenerator] = (),
) -> list[HostDraw]:
    """Each line of user code after which one of `streams`, or of the model's `own` generators, had moved.

    Once per line and module; a generator of the model's goes by its path.
    """
    found: dict[HostDraw, None] = {}
    with ModuleStack(model) as stack:
        tracer = _LineTracer(stack, found, streams, own)
        with followed_by(tracer), tracer:
            run()
    return list(found)


class _LineTracer(LineTracer):
    """Remembers the last line of user code and looks, at the next event, whether a stream moved."""

    def __init__(
        self,
        stack: ModuleStack,
        found: dict[HostDraw, None],
        wanted: Collection[str],
        own: Sequence[OwnGenerator],
    ) -> None:
        super().__init__()
        self._wanted = {*wanted, *(held.path for held in own)}
        self._own = own
        self._stack = stack
        self._found = found
        self._last: tuple[str, str, int] | None = None
        self._streams = _host_streams(self._own)

    def on_another_thread(self) -> _LineTracer:
        """One that adds to what this one has found, and begins at the line that handed the work over."""
        return copy.copy(self)

    def call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not is_user_file(frame.f_code.co_filename):
            return None
        if self._last is None:  # evalmode seeds the streams before the model's first line
            self._streams.update(_host_streams(self._own))
        self.compare()
        return self.line

    def line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.compare()
        if event == "line":
            self._last = (self._stack.top, frame.f_code.co_filename, frame.f_lineno)
        elif event == "return" and frame.f_back is not None and is_user_file(frame.f_back.f_code.co_filename):
            self._last = (self._stack.top, frame.f_back.f_code.co_filename, frame.f_back.f_lineno)
        return self.line

    def compare(self) -> None:
        now = _host_streams(self._own)
        if now == self._streams:
            return
        for name in now:
            if name in self._wanted and now[name] != self._streams.get(name, now[name]):
                module, file, line = self._last or (self._stack.top, "", 0)
                place = line_place(module, file, line) if file else Place(module=module)
                self._found[HostDraw(name, place)] = None
        self._streams.update(now)  # in place: the tracers of all threads share it


def _host_streams(own: Sequence[OwnGenerator]) -> dict[str, object]:
    states: dict[str, object] = {
        "python": random.getstate(),
        "torch": torch.default_generator.get_state().numpy().tobytes(),
    }
    module = sys.modules.get("numpy.random")
    if module is not None:
        state = module.get_state(legacy=True)
        states["numpy"] = (state[1].tobytes(), *state[2:]) if isinstance(state, tuple) else repr(state)
    states |= {held.path: held.current() for held in own}
    return states
