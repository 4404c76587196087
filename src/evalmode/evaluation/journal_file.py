"""The SQLite file of a journal: made whole or not at all, opened so that a commit lasts, distrusted when read."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from evalmode.errors import EvalmodeError, JournalError

__all__ = ["create", "digest", "identity_digest", "is_there", "opened", "told"]

_MARK: Final = b"SQLite format 3\0"
_APPLICATION: Final = 0x65766D6A  # "evmj", in the header of the file
FORMAT_VERSION: Final = 3
_SCHEMA: Final = (
    "CREATE TABLE chunks (number INTEGER PRIMARY KEY, data BLOB NOT NULL, digest BLOB NOT NULL)",
    "CREATE TABLE identity (number INTEGER PRIMARY KEY, name TEXT NOT NULL, value TEXT NOT NULL)",
    "CREATE TABLE result (number INTEGER PRIMARY KEY, data BLOB NOT NULL, digest BLOB NOT NULL)",
    "CREATE TABLE seal (number INTEGER PRIMARY KEY, digest BLOB NOT NULL)",
)
_BESIDE: Final = ("-wal", "-shm", "-journal")  # what SQLite puts beside the file
_SYNCHRONOUS_FULL: Final = 2


def is_there(path: Path) -> bool:
    """Whether `path` holds a journal to go on with; False where there is nothing.

    Raises:
        JournalError: there is something else, or it cannot be read.
    """
    with told(path, "read"):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise JournalError(f"the journal {str(path)!r} is {what}", fix=f"journal='{path}/journal.sqlite'")
        with open(path, "rb") as file:
            head = file.read(100)
        if len(head) < 100 or not head.startswith(_MARK):
            what = "is empty" if not head else "is no journal"
            raise JournalError(f"{str(path)!r} {what}", fix="name another file, or delete this one if it is not needed")
        if int.from_bytes(head[68:72], "big") != _APPLICATION:
            raise JournalError(
                f"{str(path)!r} is an SQLite database, but no journal of evalmode", fix="name another file"
            )
        if (version := int.from_bytes(head[60:64], "big")) != FORMAT_VERSION:
            raise JournalError(
                f"{str(path)!r} has journal format {version}",
                expected=f"{FORMAT_VERSION}",
                fix="pip install --upgrade evalmode, or name another file",
            )
    return True


def create(path: Path, identity: Mapping[str, str]) -> None:
    """Make a journal without chunks. It appears at `path` whole: a kill leaves nothing or a journal.

    Raises:
        JournalError: it cannot be written.
    """
    new = path.with_name(f"{path.name}.new")
    with told(path, "make"):
        for name in (new, *(path.with_name(path.name + suffix) for suffix in _BESIDE)):
            name.unlink(missing_ok=True)  # a log of an earlier journal would be replayed into this one
        try:
            _fill(new, identity)
            os.replace(new, path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _fill(new: Path, identity: Mapping[str, str]) -> None:
    with closing(sqlite3.connect(new, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = OFF")  # it has no past to go back to
        database.execute("PRAGMA synchronous = FULL")
        database.execute(f"PRAGMA application_id = {_APPLICATION}")
        database.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        database.execute("BEGIN")
        for statement in _SCHEMA:
            database.execute(statement)
        rows = [(number, *pair) for number, pair in enumerate(sorted(identity.items()))]
        database.executemany("INSERT INTO identity VALUES (?, ?, ?)", rows)
        database.execute("INSERT INTO seal VALUES (0, ?)", (identity_digest(identity),))
        database.execute("COMMIT")


def opened(path: Path) -> sqlite3.Connection:
    """A connection to the journal at `path`, which is checked page by page and closed to every other process.

    Raises:
        JournalError: it is damaged, or cannot be opened.
    """
    with told(path, "open"):
        # A journal is used by one thread at a time, but not always by the one that opened it.
        database = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
        try:
            _prepare(path, database)
        except BaseException:
            database.close()
            raise
    return database


def _prepare(path: Path, database: sqlite3.Connection) -> None:
    database.execute("PRAGMA trusted_schema = OFF")
    database.execute("PRAGMA cell_size_check = ON")
    # Exclusive before the first access: the log's index then lives in this process and not in shared memory.
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    mode = database.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    database.execute("PRAGMA synchronous = FULL")
    if mode != "wal" or database.execute("PRAGMA synchronous").fetchone()[0] != _SYNCHRONOUS_FULL:
        raise JournalError(f"{str(path)!r}: this file system keeps no write-ahead log", fix="use a local disk")
    if (said := [row[0] for row in database.execute("PRAGMA quick_check(3)")]) != ["ok"]:
        raise damaged(path, "; ".join(str(line).replace("\n", " ") for line in said))
    # A trigger or a view would be run by reading and writing.
    if [row[0] for row in database.execute("SELECT sql FROM sqlite_schema ORDER BY name")] != list(_SCHEMA):
        raise damaged(path, "its tables are not those of a journal")


def digest(*parts: bytes) -> bytes:
    """A digest of 32 bytes of `parts`, each with its length, so that no two lists of parts look alike."""
    state = hashlib.blake2b(digest_size=32)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def identity_digest(identity: Mapping[str, str]) -> bytes:
    """The digest from which the chain of the chunks' digests starts."""
    return digest(*(text.encode() for pair in sorted(identity.items()) for text in pair))


def damaged(path: Path, what: str) -> JournalError:
    """The error for a journal whose content is not what was written."""
    return JournalError(
        f"the journal {str(path)!r} is damaged: {what}",
        expected="the bytes that were written",
        fix=f"delete {str(path)!r} and evaluate again; look at the disk",
    )


@contextmanager
def told(path: Path, doing: str) -> Iterator[None]:
    """Turn what SQLite and the system say into a `JournalError` with the fix. `doing` is the verb of what failed."""
    try:
        yield
    except EvalmodeError:
        raise
    except sqlite3.Error as error:
        raise _explained(path, doing, error) from error
    except (OverflowError, MemoryError) as error:
        raise JournalError(
            f"cannot {doing} the journal {str(path)!r}: {str(error) or 'out of memory'}",
            fix="a smaller batch_size, or keep less of each sample",
        ) from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _full(path) from error
        reason = error.strerror or str(error)
        fix = "name a file in a folder that you may write to"
        raise JournalError(f"cannot {doing} the journal {str(path)!r}: {reason}", fix=fix) from error
    except ValueError as error:
        raise damaged(path, str(error)) from error


def _full(path: Path) -> JournalError:
    return JournalError(
        f"the disk is full: cannot write the journal {str(path)!r}; what it recorded is kept",
        fix="free some space and run the same again: it goes on from there",
    )


def _explained(path: Path, doing: str, error: sqlite3.Error) -> JournalError:
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    shown = f"cannot {doing} the journal {str(path)!r}: {error}"
    if primary == sqlite3.SQLITE_FULL:
        return _full(path)
    if primary in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return JournalError(
            f"the journal {str(path)!r} is in use by another program", fix="end that program, such as an SQLite browser"
        )
    if primary in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
        return JournalError(shown, fix="name a file in a folder that you may write to")
    if primary == sqlite3.SQLITE_IOERR:
        return JournalError(shown, fix="look at the disk and its free space, then run the same again: it goes on")
    if primary == sqlite3.SQLITE_TOOBIG:
        return JournalError(shown, fix="a smaller batch_size, or keep less of each sample")
    if primary in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT} or code is None:
        return damaged(path, str(error))
    return JournalError(shown, fix=f"run the same again; if it stays, delete {str(path)!r}")
