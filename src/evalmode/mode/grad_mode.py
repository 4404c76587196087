"""Grad mode per thread, kept in a ledger: right in whatever order evaluations end.

Two overlapping `torch.no_grad()` blocks (asyncio tasks, generators) restore each other's state wrongly, because each
puts back what it saw when it began. Here an evaluation that ends early hands what it saw to the one that began after
it, and the last to end puts back what was there before the first.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from evalmode.errors import EvalmodeWarning

__all__ = ["GradHold", "OnBackward", "hold_grad_mode", "innermost_hold", "release_grad_mode"]

OnBackward = Literal["error", "ignore", "allow"]


@dataclass(slots=True, eq=False)
class GradHold:
    """One evaluation's wish for the grad mode of the thread it runs in, and what it found there."""

    gradients: bool
    inference_mode: bool
    on_backward: OnBackward
    before: bool = True
    inference: Any = None  # torch's own guard: entering and leaving it runs no Python that could be interrupted
    thread: _Thread | None = None


@dataclass(slots=True, eq=False)
class _Thread:
    holds: list[GradHold] = field(default_factory=list)


class _Local(threading.local):
    def __init__(self) -> None:
        self.thread = _Thread()


_local = _Local()


def innermost_hold() -> GradHold | None:
    """The evaluation that decides in this thread, if any."""
    holds = _local.thread.holds
    return holds[-1] if holds else None


def hold_grad_mode(hold: GradHold) -> None:
    """Set this thread's grad mode as `hold` wishes."""
    thread = _local.thread
    hold.before = torch.is_grad_enabled()
    hold.thread = thread
    thread.holds.append(hold)  # from here on a release puts grad mode back
    if hold.inference_mode:
        hold.inference = torch._C._InferenceMode(True)  # noqa: SLF001 - what torch.inference_mode() enters
        hold.inference.__enter__()
    torch.set_grad_enabled(hold.gradients)


def release_grad_mode(hold: GradHold) -> None:
    """Put back what `hold` found, or hand it to the evaluation that began next and still runs. Safe to call twice."""
    thread = hold.thread
    if thread is None or hold not in thread.holds:
        return
    if thread is not _local.thread:
        thread.holds.remove(hold)
        warnings.warn(
            "an evaluation ended in another thread than it began in (a generator closed by the garbage collector?): "
            "the grad mode of the thread it began in cannot be put back from here",
            EvalmodeWarning,
            stacklevel=4,
        )
        return
    position = thread.holds.index(hold)
    if position == len(thread.holds) - 1:
        _leave_inference(hold)
        torch.set_grad_enabled(hold.before)
        thread.holds.remove(hold)
        return
    wanted = torch.is_grad_enabled()
    following = thread.holds[position + 1]
    following.before = hold.before
    if hold.inference is not None:
        _hand_inference_on(hold, thread.holds[position + 1 :])
        torch.set_grad_enabled(wanted)
    thread.holds.remove(hold)


def _leave_inference(hold: GradHold) -> None:
    if hold.inference is not None:
        hold.inference.__exit__(None, None, None)  # a second time it does nothing
        hold.inference = None


def _hand_inference_on(hold: GradHold, later: list[GradHold]) -> None:
    """Inference mode guards nest strictly: let a later one end in place of the one that ends now."""
    for other in later:
        if other.inference is not None:
            _leave_inference(other)
            other.inference, hold.inference = hold.inference, None
            return
    _leave_inference(hold)
