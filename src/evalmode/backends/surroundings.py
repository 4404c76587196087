"""What the caller has switched on, kept out of an execution: gradients, inference mode, autocast, and the settings of
the process that torch's operators go by (default dtype, default device, oneDNN, the precision of fp32)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
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


class Standing(NamedTuple):
    """The settings of torch under which a plan was built. All but the device belong to the process, not to a thread."""

    dtype: torch.dtype
    onednn: bool
    precisions: tuple[str, ...]
    device: torch.device


_Process = tuple[torch.dtype, bool, tuple[str, ...]]


class _Held:
    """What was changed for executions that run now, and how many they are: the last one to end puts it back."""

    count = 0
    before: _Process = (torch.float32, True, ())
    wanted: _Process = (torch.float32, True, ())


_held = _Held()
_free = threading.Condition()


def standing_now() -> Standing:
    """The settings of this moment."""
    device = torch.get_default_device()
    return Standing(*_process_now(), _CPU if device == _CPU else device)


def with_standing(standing: Standing, work: Callable[[Given], Answer], given: Given) -> Answer:
    """`work(given)` under the settings that a plan was built with, which are put back afterwards.

    Example:
        >>> built = standing_now()
        >>> torch.set_default_dtype(torch.float64)
        >>> with_standing(built, lambda shape: torch.ones(shape).dtype, (2,)), torch.ones(2).dtype
        (torch.float32, torch.float64)
        >>> torch.set_default_dtype(torch.float32)
    """
    dtype, onednn, precisions, device = standing
    if (  # asked for every execution: a microsecond
        _held.count == 0
        and _onednn_enabled() is onednn
        and torch.get_default_dtype() is dtype
        and fp32_precisions() == precisions
        and not ((function_modes() or device is not _CPU) and torch.get_default_device() != device)
    ):
        return work(given)
    same = torch.get_default_device() == device  # a block compiles to something else, so there is none without need
    with _process_held((dtype, onednn, precisions)), contextlib.nullcontext() if same else device:
        return work(given)


@contextlib.contextmanager
def _process_held(wanted: _Process) -> Iterator[None]:
    """Executions that want the same run at once; those that want something else wait for their end."""
    with _free:
        while _held.count and _held.wanted != wanted:
            _free.wait()
        if _held.count == 0:
            _held.before, _held.wanted = _process_now(), wanted
            _set(wanted)
        _held.count += 1
    try:
        yield
    finally:
        with _free:
            _held.count -= 1
            if _held.count == 0:
                _set(_held.before)
                _free.notify_all()


def _process_now() -> _Process:
    return torch.get_default_dtype(), _onednn_enabled(), fp32_precisions()


def _set(values: _Process) -> None:
    dtype, onednn, precisions = values
    torch.set_default_dtype(dtype)
    _set_onednn_enabled(onednn)
    set_fp32_precisions(precisions)


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
