"""How much memory a plan needs: read from the kernel's own high-water mark, because back ends allocate out of sight."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

__all__ = ["peak_bytes_of", "resident_bytes", "tidy"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_bytes_of(work: Callable[[], object]) -> int | None:
    """By how many bytes the process grew at most while `work` ran; None where the kernel does not say.

    Units: bytes of resident memory, in pages.

    Source: proc(5): `VmHWM`, reset by writing 5 to `/proc/self/clear_refs`.
    """
    tidy()
    before = resident_bytes()
    if before is None:
        return None
    try:
        _CLEAR.write_text("5")
    except OSError:  # no such file outside Linux, or not allowed in this container
        return None
    work()
    after = _read("VmHWM")
    return None if after is None else max(0, after - before)


def resident_bytes() -> int | None:
    """The resident memory of this process; None where the kernel does not say."""
    return _read("VmRSS")


def tidy() -> None:
    """Collect garbage and give free memory back to the kernel, so that the next growth is seen."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not the GNU C library
        ctypes.CDLL(None).malloc_trim(0)


def _read(name: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None
