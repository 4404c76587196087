"""Memory that nobody needs any more after a build, given back."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

__all__ = ["forget_last_export", "release_file_pages"]

_MAPPINGS = Path("/proc/self/smaps")


def release_file_pages(part: str) -> int:
    """Give back the pages of files whose path holds `part`, where they are mapped for reading and were never written.

    They are read again from the file if they are touched, so nothing can be lost. Where the kernel lists no mappings
    nothing is done.

    Units: bytes of address space.

    Source: madvise(2), `MADV_DONTNEED` on a private file mapping; proc(5), `smaps`.
    """
    advise = getattr(mmap, "MADV_DONTNEED", None)
    if advise is None:
        return 0
    released = 0
    with contextlib.suppress(OSError, AttributeError, ValueError):  # no such list, no such call
        library = ctypes.CDLL(None)
        for start, end in list(_clean_mappings(part)):
            if library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advise) == 0:
                released += end - start
    return released


def forget_last_export() -> None:
    """Let go of the model that was exported last: torch keeps its graph, and with it the weights, until the next one.

    Source: `torch.fx.experimental.proxy_tensor`, the map of fake tensors to nodes of torch 2.9 and later.
    """
    from torch.fx.experimental import proxy_tensor

    kept = getattr(proxy_tensor, "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT", None)
    if isinstance(kept, dict):
        kept.clear()


def _clean_mappings(part: str) -> Iterator[tuple[int, int]]:
    """The addresses of read-only file mappings without a page of their own (a linker writes, then closes, some)."""
    found: tuple[int, int] | None = None
    for line in _MAPPINGS.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split(maxsplit=5)
        if not words[0].endswith(":"):
            named = len(words) == 6 and part in words[5] and words[1].startswith("r-")
            start, _, end = words[0].partition("-")
            found = (int(start, 16), int(end, 16)) if named else None
        elif found is not None and words[0] == "Anonymous:":
            if words[1] == "0":
                yield found
            found = None
