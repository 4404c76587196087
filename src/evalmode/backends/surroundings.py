"""What the caller has switched on, kept out of an execution: gradients, inference mode, autocast, and the settings of
the process that torch's operators go by (default dtype, default device, oneDNN, the precision of fp32)."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import torch

from evalmode.backends.threads import function_modes
from evalmode.observe.fp32_precision import fp32_precisions, set_fp32_precisions

__all__ = ["Standing", "standing_now", "undisturbed", "with_standing"]

Given = TypeVar("Given")
Answer = TypeVar("Answer")

_onednn_enabled: Callable[[], bool] = torch._C._get_mkldnn_enabled  # noqa: SLF001 - `torch.backends.mkldnn.flags` asks it
_set_onednn_enabled: Callable[[bool], None] = torch._C._set_mkldnn_enabled  # noqa: SLF001
_CPU = torch.device("cpu")


class _Process(NamedTuple):
    """Settings that belong to the process, not to a thread."""

    dtype: torch.dtype
    onednn: bool
    precisions: tuple[str, ...]


class Standing(NamedTuple):
    """The settings of torch under which a plan was built."""

    process: _Process
    device: torch.device

    def at_tf32(self, allowed: bool) -> Standing:
        """The same, with TF32 on CUDA allowed or forbidden."""
        cuda = ("tf32" if allowed else "ieee",) * 3
        return self._replace(process=self.process._replace(precisions=(*self.process.precisions[:3], *cuda)))


class _Held:
    """What the executions that run now want of the process, how many they are, and what is put back after the last.

    `waiting` are those that want something else; while there are any, nobody joins those who run.
    """

    count = 0
    waiting = 0
    wanted: _Process | None = None
    before: _Process | None = None


_held = _Held()
_free = threading.Condition(threading.Lock())
_inside: ContextVar[bool] = ContextVar("an execution runs", default=False)  # its workers know it too


def standing_now() -> Standing:
    """The settings of this moment."""
    device = torch.get_default_device()
    return Standing(_process_now(), _CPU if device == _CPU else device)


def with_standing(standing: Standing, work: Callable[[Given], Answer], given: Given) -> Answer:
    """`work(given)` under the settings that a plan was built with, which are put back afterwards.

    Executions that want the same run at once; those that want something else wait for their end.

    Example:
        >>> built = standing_now()
        >>> torch.set_default_dtype(torch.float64)
        >>> with_standing(built, lambda shape: torch.ones(shape).dtype, (2,)), torch.ones(2).dtype
        (torch.float32, torch.float64)
        >>> torch.set_default_dtype(torch.float32)
    """
    process, device = standing
    if _inside.get():  # an execution within an execution cannot wait for its own end
        return _within(process, work, given)
    _enter(process)  # for every execution: it and its end take three microseconds
    token = _inside.set(True)
    try:
        if not (function_modes() or device is not _CPU) or torch.get_default_device() == device:
            return work(given)
        with device:  # a block compiles to something else, so there is none without need
            return work(given)
    finally:
        _inside.reset(token)
        _leave()


def _enter(wanted: _Process) -> None:
    with _free:
        if _held.count and (_held.waiting or _held.wanted != wanted):
            _held.waiting += 1
            try:
                _free.wait_for(lambda: _held.count == 0 or (_held.wanted == wanted and _held.waiting == 1))
            finally:
                _held.waiting -= 1
        _held.count += 1
        now = _process_now()
        if _held.count == 1:
            _held.wanted, _held.before = wanted, now
        elif now != wanted and _held.before is not None:  # the caller's code has changed it meanwhile
            _held.before = _changed(_held.before, wanted, now)
        if now != wanted:
            _set(wanted, now)


def _leave() -> None:
    with _free:
        _held.count = max(0, _held.count - 1)  # 0 in a child that was forked meanwhile
        if _held.count == 0:
            if _held.before != _held.wanted:
                _put_back()
            if _held.waiting:
                _free.notify_all()


def _put_back() -> None:
    """What was there before, but for what the caller's code has set meanwhile."""
    before, wanted, now = _held.before, _held.wanted, _process_now()
    if before is None or wanted is None:
        return
    _set(_changed(before, wanted, now), now)


def _changed(before: _Process, wanted: _Process, now: _Process) -> _Process:
    """What was there before, with what is neither that nor what was set: somebody has changed it since."""
    return _Process._make(
        [old if current == ours else current for old, ours, current in zip(before, wanted, now, strict=True)]
    )


def _after_fork() -> None:
    """No execution of the parent's runs in a child, and what it had set is put back there."""
    global _free  # noqa: PLW0603 - its lock may have been held
    _free = threading.Condition(threading.Lock())
    if _held.count:
        _put_back()
    _held.count = _held.waiting = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _within(process: _Process, work: Callable[[Given], Answer], given: Given) -> Answer:
    now = _process_now()
    if now == process:
        return work(given)
    _set(process, now)
    try:
        return work(given)
    finally:
        _set(now, process)


def _process_now() -> _Process:
    return _Process(torch.get_default_dtype(), _onednn_enabled(), fp32_precisions())


def _set(wanted: _Process, now: _Process) -> None:
    if wanted.dtype is not now.dtype:
        torch.set_default_dtype(wanted.dtype)
    if wanted.onednn is not now.onednn:
        _set_onednn_enabled(wanted.onednn)
    if wanted.precisions != now.precisions:
        set_fp32_precisions(wanted.precisions)


def undisturbed(device: str, work: Callable[[Given], Answer], given: Given) -> Answer:
    """`work(given)` without gradients, inference mode or autocast, so that its outputs are ordinary tensors.

    Example:
        >>> with torch.inference_mode(), torch.autocast("cpu"):
        ...     undisturbed("cpu", lambda x: (x @ x).dtype, torch.ones(2, 2))
        torch.float32
    """
    if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device):
        with _switched_off(device):
            return work(given)
    if torch.is_grad_enabled():
        with torch.no_grad():
            return work(given)
    return work(given)


@contextlib.contextmanager
def _switched_off(device: str) -> Iterator[None]:
    with torch.inference_mode(mode=False), torch.no_grad(), torch.autocast(device, enabled=False):
        yield
