"""How far an evaluation is: samples a second, time left, and the first figure so far with its interval."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evalmode.errors import UsageError
from evalmode.evaluation.reading import Reading

if TYPE_CHECKING:
    pass

__all__ = ["OnProgress", "Progress", "Tracker"]

_EVERY = 0.2  # seconds between two reports


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is. `total` and `seconds_left` are None where the data has no length; `value` is the first metric's
    figure of the samples that ran so far, without those of an earlier run, from `low` to `high`, where it has one value
    for each sample. Units: seconds, samples a second."""

    done: int
    total: int | None
    seconds: float
    samples_per_second: float
    seconds_left: float | None
    metric: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """One line for people.

        Example:
            >>> print(Progress(50, 100, 2.0, 25.0, 2.0, "accuracy", 0.9, 0.78, 0.97))
            50 of 100, 25 samples/s, 2 s left, accuracy 0.9 (0.78 to 0.97)
        """
        parts = [f"{self.done:,} of {self.total:,}" if self.total else f"{self.done:,}"]
        parts.append(f"{self.samples_per_second:,.0f} samples/s")
        if self.seconds_left is not None:
            parts.append(f"{self.seconds_left:,.0f} s left")
        if self.value is not None:
            between = "" if self.low is None or self.high is None else f" ({self.low:.3g} to {self.high:.3g})"
            parts.append(f"{self.metric} {self.value:.4g}{between}")
        return ", ".join(parts)


OnProgress = Callable[[Progress], object]


class Tracker:
    """Counts what is done and tells it a few times a second, and once at the end."""

    def __init__(self, tell: OnProgress | None, total: int | None, confidence: float, done: int = 0) -> None:
        self.tell, self.total, self.confidence = tell, total, confidence
        self.done, self.before = done, done
        self.started = self.told = time.perf_counter()
        self.metric = ""
        self.count = 0
        self.sums = (0.0, 0.0)
        self.proportion = False
        self.rooted = False

    def add(self, count: int, reading: Reading | None = None, *, rooted: bool = False) -> None:
        """Take in samples that are done; those that were left out have no reading. `rooted` says that the first metric
        is the root of a mean."""
        self.rooted = rooted or self.rooted
        self.done += count
        if self.tell is None:
            return
        if reading is not None:
            self._add(reading)
        now = time.perf_counter()
        if now - self.told >= _EVERY:
            self.told = now
            self.tell(self.now())

    def finish(self) -> None:
        """Tell the end."""
        if self.tell is not None:
            self.tell(self.now())

    def now(self) -> Progress:
        """How far it is."""
        seconds = time.perf_counter() - self.started
        rate = (self.done - self.before) / seconds if seconds > 0 else 0.0
        left = (self.total - self.done) / rate if self.total is not None and rate > 0 else None
        value, low, high = self._figure()
        if self.rooted:
            value, low, high = (None if end is None else math.sqrt(max(end, 0.0)) for end in (value, low, high))
        return Progress(self.done, self.total, seconds, rate, left, self.metric, value, low, high)

    def _add(self, reading: Reading) -> None:
        name, rows = next(iter(reading.rows.items()), ("", None))
        if rows is None or rows.ndim != 1:
            return
        self.metric, self.proportion = name, rows.dtype == np.bool_
        wide = rows.astype(np.float64)
        self.count += len(rows)
        self.sums = (self.sums[0] + float(wide.sum()), self.sums[1] + float((wide * wide).sum()))

    def _figure(self) -> tuple[float | None, float | None, float | None]:
        """The mean so far and a normal interval around it; Wilson's for a proportion."""
        if not self.count:
            return None, None, None
        mean = self.sums[0] / self.count
        z = _quantile(self.confidence)
        if self.proportion:
            spread = z * z / self.count
            middle = (mean + spread / 2) / (1 + spread)
            half = math.sqrt(max(mean * (1 - mean) * spread + spread * spread / 4, 0.0)) / (1 + spread)
            return mean, max(0.0, middle - half), min(1.0, middle + half)
        if self.count < 2 or not math.isfinite(self.sums[1]):
            return mean, None, None
        variance = max(self.sums[1] - self.count * mean * mean, 0.0) / (self.count - 1)
        half = z * math.sqrt(variance / self.count)
        return mean, mean - half, mean + half


def _quantile(confidence: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + confidence) / 2)


@contextlib.contextmanager
def shown(progress: bool | OnProgress) -> Any:
    """The function to tell progress to: the caller's own, a bar where a terminal listens, or None.

    Raises:
        UsageError: it is neither a boolean nor a function.
    """
    if callable(progress):
        yield progress
        return
    if not isinstance(progress, bool):
        raise UsageError(
            f"progress is {progress!r}",
            expected="True, False, or a function that is called with a Progress",
            fix="progress=False shows nothing",
        )
    if not progress or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (SpinnerColumn("line"), TextColumn("evaluating"), BarColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(state: Progress) -> None:
            bar.update(task, description=str(state), completed=state.done, total=state.total)

        yield tell
