"""Files that are whole or not there: a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["atomic_file", "is_no_file"]


def is_no_file(path: Path) -> bool:
    """Whether something else than a file or folder has that name: a pipe, a terminal, `/dev/null`."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write, that takes the place of `path` once the block has ended well; otherwise nothing is left of it.

    Folders that are missing are made. The file is on the disk before it gets its name, and everybody may read it. A
    link stays one, and what is no file, as a pipe or `/dev/null`, is written into.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "new" / "notes.txt"
        >>> with atomic_file(target) as file:
        ...     _ = file.write(b"whole")
        >>> target.read_bytes()
        b'whole'
    """
    target = Path(path)
    if is_no_file(target):
        with target.open("wb") as stream:
            yield stream
        return
    target = target.resolve() if target.is_symlink() else target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise
