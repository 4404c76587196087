"""What a search is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from evalmode.backends.backend import Backend

__all__ = ["SearchSettings"]


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What the user asked for. `memory` is how many times plain's peak a plan may need, None for no limit.

    `answers` are the samples of the user's data that every candidate has to answer.
    """

    backends: tuple[Backend, ...]
    precisions: tuple[str, ...] | None
    threads: int
    device: str
    stable: bool
    budget: float
    memory: float | None = 1.0
    answers: int = 0
