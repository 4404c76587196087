"""The journal of an evaluation: what was done so far survives a kill at any point, and is gone on with bit for bit.

One SQLite file, a lock file beside it while it is used, for one process on one machine: a network file system keeps
neither its locks nor its writes reliably.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from evalmode.errors import JournalError, MissingExtraError, UsageError
from evalmode.evaluation.chunk import Chunk
from evalmode.evaluation.chunk_bytes import packed, unpacked
from evalmode.evaluation.journal_file import create, damaged, digest, identity_digest, is_there, opened, told
from evalmode.evaluation.runs import Runs

if TYPE_CHECKING:
    from filelock import FileLock

__all__ = ["Journal"]

_SHOWN = 48  # characters of a value in a message


class Journal:
    """The chunks of an evaluation in the order in which they were recorded, in a file that only this process uses.

    Every `append` is one transaction that is on the disk when it returns. Chunks carry a chain of digests: a journal
    reads back what was written, or is refused as damaged. Nothing in the file is executed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Journal.open(f"{folder}/journal.sqlite", {"model": "3f2a"}) as journal:
        ...         journal.append(Chunk(np.array([0, 1]), np.array([7, 9])))
        ...     with Journal.open(f"{folder}/journal.sqlite", {"model": "3f2a"}) as journal:
        ...         [chunk.ids.tolist() for chunk in journal.chunks()]
        [[7, 9]]
    """

    def __init__(self, path: Path, identity: Mapping[str, str], lock: FileLock) -> None:
        """`Journal.open` is the way in: it takes the lock first."""
        self.path = path
        self.identity = dict(identity)
        self._lock = lock
        self._runs = Runs()
        self._recorded = _Recorded(0, 0, b"", identity_digest(identity))
        self._finished: bytes | None = None
        if not is_there(path):
            create(path, identity)
        self._database: sqlite3.Connection | None = opened(path)
        try:
            with told(path, "read"):
                self._read()
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str], identity: Mapping[str, str]) -> Journal:
        """The journal at `path`, made if there is none. `identity` says what it is of, in words and digests by name:
        the model, the plan, the data, the settings.

        Raises:
            JournalError: another process holds it, it is of another identity, damaged, or something else than a
                journal, or it cannot be written.
            MissingExtraError: filelock is not installed.
        """
        path = Path(os.path.realpath(path))  # two names of one file have one lock
        for name, value in identity.items():
            if not isinstance(name, str) or not isinstance(value, str) or not _writable(name + value):
                raise UsageError(f"the identity of a journal has {name!r}: {value!r}", expected="text by name")
        lock = _locked(path)
        try:
            return cls(path, identity, lock)
        except BaseException:
            lock.release()
            raise

    @property
    def done(self) -> int:
        """How many samples of the data it answers for: those recorded and those left out as bad."""
        return self._recorded.samples

    @property
    def finished(self) -> bytes | None:
        """What `finish` was given; None while the evaluation is under way."""
        return self._finished

    def has(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each of `positions`, of shape `(N,)`, whether its sample is recorded."""
        return self._runs.has(positions)

    def chunks(self) -> Iterator[Chunk]:
        """The recorded chunks in the order in which they were recorded, one in memory at a time.

        Raises:
            JournalError: what is read is not what was written.
        """
        last = identity_digest(self.identity)
        for number in range(self._recorded.chunks):
            with told(self.path, "read"):
                chunk, last = self._chunk(number, last)
            yield chunk

    def append(self, chunk: Chunk) -> None:
        """Record a chunk: when this returns, it is on the disk. Of a chunk that is refused, nothing is.

        The last one again changes nothing: a call that Ctrl-C stopped, before or after its commit, can be repeated.

        Raises:
            JournalError: the disk is full, or the file cannot be written.
            UsageError: a sample is recorded already, or the evaluation is finished.
        """
        if self._finished is not None:
            raise UsageError(f"the evaluation in {str(self.path)!r} is finished", fix="name another journal")
        data = packed(chunk)
        self._catch_up()
        recorded = self._recorded
        if recorded.chunks and digest(recorded.before, data) == recorded.last:
            return
        positions = chunk.done_positions
        if (there := self._runs.has(positions)).any():
            raise UsageError(
                f"the sample at position {int(positions[there][0])} is in {str(self.path)!r} already",
                expected="every sample once",
            )
        seal = digest(recorded.last, data)
        self._write("INSERT INTO chunks VALUES (?, ?, ?)", (recorded.chunks, data, seal))
        self._took(chunk, seal)

    def finish(self, result: bytes) -> None:
        """Record the result; nothing can be appended afterwards.

        Raises:
            JournalError: the disk is full, or the file cannot be written.
            UsageError: another result is recorded already.
        """
        if self._finished == result:
            return
        if self._finished is not None:
            raise UsageError(f"{str(self.path)!r} holds another result already", fix="name another journal")
        self._catch_up()
        seal = digest(self._recorded.last, b"result", result)
        self._write("INSERT INTO result VALUES (0, ?, ?)", (result, seal))
        self._finished = bytes(result)

    def close(self) -> None:
        """Give the file and its lock back; a second call does nothing."""
        database, self._database = self._database, None
        try:
            if database is not None:
                with told(self.path, "close"):
                    database.close()
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        database = self._open_database()
        with told(self.path, "write"):
            try:
                database.execute("BEGIN IMMEDIATE")
                database.execute(statement, values)
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def _open_database(self) -> sqlite3.Connection:
        if self._database is None:
            raise UsageError(f"the journal {str(self.path)!r} is closed", fix="open it again")
        return self._database

    def _read(self) -> None:
        """Take in what is recorded, and refuse a journal of something else before one that is damaged."""
        database = self._open_database()
        stored = dict(database.execute("SELECT name, value FROM identity ORDER BY number").fetchall())
        text = all(isinstance(part, str) for pair in stored.items() for part in pair)
        if not text or database.execute("SELECT digest FROM seal").fetchall() != [(identity_digest(stored),)]:
            raise damaged(self.path, "what it says it is of has changed")
        if stored != self.identity:
            raise _of_another(self.path, stored, self.identity)
        numbers = [row[0] for row in database.execute("SELECT number FROM chunks ORDER BY number")]
        if numbers != list(range(len(numbers))):
            raise damaged(self.path, "a chunk is missing")
        for number in numbers:
            chunk, seal = self._chunk(number, self._recorded.last)
            if self._runs.has(chunk.done_positions).any():
                raise damaged(self.path, "a sample is in two chunks")
            self._took(chunk, seal)
        results = database.execute("SELECT data, digest FROM result").fetchall()
        if results and (
            len(results) > 1 or digest(self._recorded.last, b"result", _blob(results[0][0])) != results[0][1]
        ):
            raise damaged(self.path, "its result has changed")
        self._finished = results[0][0] if results else None

    def _chunk(self, number: int, last: bytes) -> tuple[Chunk, bytes]:
        """The chunk and its digest; `last` is the digest of the chunk before."""
        row = self._open_database().execute("SELECT data, digest FROM chunks WHERE number = ?", (number,)).fetchone()
        if row is None or digest(last, _blob(row[0])) != row[1]:
            raise damaged(self.path, f"chunk {number} has changed")
        return unpacked(row[0]), row[1]

    def _catch_up(self) -> None:
        """Take in what was committed, where Ctrl-C came before it was counted."""
        number = self._recorded.chunks
        with told(self.path, "read"):
            if self._open_database().execute("SELECT 1 FROM chunks WHERE number = ?", (number,)).fetchone():
                self._took(*self._chunk(number, self._recorded.last))

    def _took(self, chunk: Chunk, seal: bytes) -> None:
        positions = chunk.done_positions
        self._runs.add(positions)
        samples, chunks, _, last = self._recorded
        self._recorded = _Recorded(samples + len(positions), chunks + 1, last, seal)


class _Recorded(NamedTuple):
    """What is in the file: of how many samples, in how many chunks, and the digests of the last two."""

    samples: int
    chunks: int
    before: bytes
    last: bytes


def _blob(value: Any) -> bytes:
    """A value that SQLite gave as the bytes it was, whatever type a damaged row gives it."""
    return value if isinstance(value, bytes) else b""


def _locked(path: Path) -> FileLock:
    try:
        from filelock import FileLock, SoftFileLock, Timeout
    except ImportError as error:
        raise MissingExtraError("a journal needs filelock", fix="pip install 'evalmode[evaluate]'") from error
    beside = path.with_name(f"{path.name}.lock")
    with told(path, "lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(beside)
        holder = _holder(beside)  # before the attempt: an older filelock empties the file by trying
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if not holder and not beside.exists():  # a folder that takes no files, as /proc: nobody holds it
                raise JournalError(
                    f"cannot lock the journal {str(path)!r}: {beside.name!r} cannot be made beside it",
                    fix="name a file in a folder that you may write to",
                ) from error
            raise JournalError(
                f"the journal {str(path)!r} is in use by {holder or 'another process'}",
                expected="one process on one journal",
                fix="wait for it, end it, or name another journal",
            ) from error
        try:
            if isinstance(lock, SoftFileLock):
                raise JournalError(f"{str(path)!r}: this file system keeps no locks", fix="use a local disk")
            beside.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        except BaseException:
            lock.release()
            raise
    return lock


def _writable(text: str) -> bool:
    return text.encode("utf-8", "replace").decode("utf-8") == text


def _holder(beside: Path) -> str:
    try:
        return beside.read_text(encoding="utf-8", errors="replace")[:200]
    except FileNotFoundError:
        return ""


def _of_another(path: Path, stored: Mapping[str, str], given: Mapping[str, str]) -> JournalError:
    lines = []
    for name in sorted(stored.keys() | given.keys()):
        there, here = stored.get(name), given.get(name)
        if there != here:
            lines.append(f"  {name}: {_shown(there, here)} in the journal, {_shown(here, there)} now")
    return JournalError(
        "\n".join((f"the journal {str(path)!r} is of another evaluation", *lines)),
        expected="the same model, plan, data and settings",
        fix=f"evaluate with those, name another journal, or delete {str(path)!r} to start again",
    )


def _shown(value: str | None, other: str | None) -> str:
    """A value in a line of a message, cut to where it begins to differ from the other."""
    if value is None:
        return "nothing"
    start = 0
    if len(value) > _SHOWN and other is not None:
        same = next((place for place, (one, two) in enumerate(zip(value, other, strict=False)) if one != two), None)
        start = max(0, (min(len(value), len(other)) if same is None else same) - _SHOWN // 2)
    cut = value[start : start + _SHOWN]
    return repr(f"{'…' * (start > 0)}{cut}{'…' * (start + len(cut) < len(value))}")
