"""A folder for what a back end reads from files, gone when the last executor that needs it is."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from io import FileIO
from pathlib import Path

__all__ = ["Folder"]

_PIECE = 64 << 10


class Folder:
    """A new, empty folder at `path`, readable by this user alone; removed with this object, and when Python ends.

    Example:
        >>> folder = Folder()
        >>> path = folder.path
        >>> folder.write("weights", b"...")
        >>> del folder
        >>> path.exists()
        False
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="evalmode-"))
        weakref.finalize(self, _removed, self.path, os.getpid())

    def write(self, name: str, data: bytes) -> None:
        """Make a file, piece by piece: what was written in large pieces Linux maps in large pieces too.

        A back end that reads a few rows of a table would then hold the whole of it.
        """
        view = memoryview(data)
        with (self.path / name).open("wb", buffering=0) as file:
            for start in range(0, len(view), _PIECE):
                _write(file, view[start : start + _PIECE])

    def rewrite(self, name: str) -> None:
        """The same for a file that somebody else wrote."""
        path, other = self.path / name, self.path / f"{name}.again"
        with path.open("rb", buffering=0) as source, other.open("wb", buffering=0) as target:
            while piece := source.read(_PIECE):
                _write(target, memoryview(piece))
        other.replace(path)


def _removed(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child, a server's worker, leaves what its parent still reads
        shutil.rmtree(path, ignore_errors=True)


def _write(file: FileIO, piece: memoryview) -> None:
    while piece:  # a disk that is nearly full takes a part, and refuses the next
        piece = piece[file.write(piece) :]
