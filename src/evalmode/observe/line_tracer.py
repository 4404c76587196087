"""Look at a forward pass from line to line, on every thread that it uses."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["LineTracer"]


class LineTracer(ABC):
    """Traces the thread that enters it; what traced that thread before is put back."""

    def __init__(self) -> None:
        self._previous: Any = None

    @abstractmethod
    def call(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Python's trace function for each call; what it returns traces the lines of that call."""

    @abstractmethod
    def compare(self) -> None:
        """Look what the last line has done."""

    @abstractmethod
    def on_another_thread(self) -> LineTracer:
        """One that traces another thread and finds for this one."""

    def __enter__(self) -> Self:
        self._previous = sys.gettrace()
        sys.settrace(self.call)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.settrace(self._previous)
        self.compare()

    def hand_over(self) -> Callable[[], AbstractContextManager[object]]:
        """Trace the thread that enters the context too."""
        return self.on_another_thread
