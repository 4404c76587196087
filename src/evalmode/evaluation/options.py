"""What an evaluation was asked for, checked."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from evalmode.errors import UsageError
from evalmode.evaluation.choice import MetricChoice, MetricFunction
from evalmode.evaluation.split import Split

__all__ = ["Options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `evaluate`, which documents them.

    Raises:
        UsageError: a number or word is none of those that are allowed.
    """

    metrics: MetricChoice = None
    split: Split | None = None
    forward: Callable[[Any, Any], Any] | None = None
    prediction: Callable[[Any], Any] | None = None
    loss: MetricFunction | None = None
    batch_size: int | Literal["auto"] = "auto"
    confidence: float = 0.95
    slices: Any = None
    groups: str | Sequence[Any] | None = None
    ids: str | Sequence[Any] | None = None
    journal: str | os.PathLike[str] | None = None
    keep_predictions: str | os.PathLike[str] | bool | None = None
    on_bad_sample: Literal["error", "skip"] = "error"
    device: str | torch.device | None = None
    limit: float | None = None
    workers: int = 0
    exact: bool = True

    def __post_init__(self) -> None:
        number = isinstance(self.confidence, int | float) and not isinstance(self.confidence, bool)
        if not number or not 0 < self.confidence < 1:
            raise UsageError(
                f"confidence is {self.confidence!r}", expected="a number between 0 and 1", fix="confidence=0.95"
            )
        if self.batch_size != "auto":
            _whole("batch_size", self.batch_size, 1)
        if self.limit is not None and self.limit != math.inf:
            _whole("limit", self.limit, 1)
        _whole("workers", self.workers, 0)
        _path("journal", self.journal)
        if not isinstance(self.keep_predictions, bool):
            _path("keep_predictions", self.keep_predictions)
        if self.on_bad_sample not in {"error", "skip"}:
            raise UsageError(f"on_bad_sample is {self.on_bad_sample!r}", expected="'error' or 'skip'")

    @property
    def most(self) -> int | None:
        """How many samples are evaluated at most; None where all are."""
        return None if self.limit is None or self.limit == math.inf else int(self.limit)


def _path(name: str, value: object) -> None:
    if value is not None and not isinstance(value, str | os.PathLike):
        raise UsageError(f"{name} is {value!r}", expected="the path of a file", fix=f"{name}='test.{name}'")


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(
            f"{name} is {value!r}", expected=f"a whole number of at least {least}", fix=f"{name}={max(least, 64)}"
        )
