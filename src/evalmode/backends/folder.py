"""A folder for what a back end reads from files, gone when the last executor that needs it is."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

__all__ = ["Folder"]


class Folder:
    """A new, empty folder at `path`, readable by this user alone; removed with this object, and when Python ends.

    Example:
        >>> folder = Folder()
        >>> path = folder.path
        >>> _ = (path / "weights").write_bytes(b"...")
        >>> del folder
        >>> path.exists()
        False
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="evalmode-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
