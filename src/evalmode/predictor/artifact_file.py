"""The bytes of an artifact: a head, a manifest, named sections, and one digest over all of it.

::

    magic (12)  version (u32)  manifest length (u64)  manifest  sections, each from a multiple of 64  SHA-256 (32)

Numbers are little-endian. Nothing is compressed, so nothing can swell; nothing names a path, so nothing can escape; no
length is believed before it fits into the file. The digest tells a damaged file from a whole one. It does not tell who
wrote it: a file from a stranger can carry a right digest.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, BinaryIO

import msgspec

from evalmode.atomic_file import atomic_file
from evalmode.errors import ArtifactError

__all__ = ["FORMAT_VERSION", "MAGIC", "SectionRecord", "read_sections", "write_sections"]

MAGIC = b"\x89evalmode\r\n\x1a"
"""As PNG's, it shows a file that went through a text conversion."""
FORMAT_VERSION = 1

_HEAD = struct.Struct("<12sIQ")
_DIGEST = 32
_ALIGNMENT = 64
_LARGEST_MANIFEST = 1 << 26
_BLOCK = 1 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_FOREIGN = {
    b"PK": "a zip file, such as torch.save or torch.export.save write",
    b"\x80": "a pickle",
    b"{": "JSON",
    b"\x7fELF": "a compiled library",
}


class SectionRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a section lies in the file, in bytes."""

    name: str
    offset: int
    length: int


class _Table(msgspec.Struct, frozen=True):
    sections: tuple[SectionRecord, ...]


def write_sections(path: str | os.PathLike[str], manifest: Mapping[str, object], sections: Mapping[str, bytes]) -> Path:
    """Write an artifact atomically: a reader sees the old file or the new one, never a part.

    `manifest` is written as JSON, with the table of `sections` added.

    Raises:
        ArtifactError: the file cannot be written.
    """
    target = Path(path)
    head, records = _laid_out(manifest, {name: len(data) for name, data in sections.items()})
    try:
        with atomic_file(target) as file:
            _write(file, head, records, sections)
    except OSError as error:
        raise ArtifactError(f"cannot write {os.fspath(path)!r}: {error.strerror}") from error
    return target


def read_sections(
    path: str | os.PathLike[str], wanted: Collection[str] | None = None
) -> tuple[bytes, dict[str, bytes]]:
    """The manifest and the sections of an artifact that is whole; `wanted` are the sections to keep, None for all.

    Raises:
        ArtifactError: the file is missing, foreign, damaged, or of a newer format.
    """
    shown = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise ArtifactError(f"{shown!r} is no regular file", expected="a file that `save` wrote")
        with open(path, "rb") as file:
            return _Reader(file, f"{shown!r}").read(wanted)
    except OSError as error:
        raise ArtifactError(f"cannot read {shown!r}: {error.strerror or error}") from error


def _laid_out(manifest: Mapping[str, object], lengths: Mapping[str, int]) -> tuple[bytes, list[SectionRecord]]:
    """The head with the manifest, and where each section begins, which depends on the length of the manifest."""
    room = 0
    while True:
        offset = _HEAD.size + room
        records = []
        for name, length in lengths.items():
            offset = _aligned(offset)
            records.append(SectionRecord(name, offset, length))
            offset += length
        text = msgspec.json.encode({**manifest, "sections": records})
        if len(text) <= room:
            text = text.ljust(room)  # JSON may end in blanks
            return _HEAD.pack(MAGIC, FORMAT_VERSION, len(text)) + text, records
        room = len(text) + 16  # offsets may get a digit more


def _write(file: IO[bytes], head: bytes, records: list[SectionRecord], sections: Mapping[str, bytes]) -> None:
    digest = hashlib.sha256()
    position = 0
    for data in (head, *(part for record in records for part in (record, sections[record.name]))):
        piece = b"\0" * (data.offset - position) if isinstance(data, SectionRecord) else data
        digest.update(piece)
        file.write(piece)
        position += len(piece)
    file.write(digest.digest())
    file.flush()
    os.fsync(file.fileno())


class _Reader:
    """Reads a file once, from its start to its end, and believes nothing in it before its digest was compared."""

    def __init__(self, file: BinaryIO, shown: str) -> None:
        self._file = file
        self._shown = shown
        self._size = os.fstat(file.fileno()).st_size
        self._end = self._size - _DIGEST
        self._position = 0
        self._digest = hashlib.sha256()

    def read(self, wanted: Collection[str] | None) -> tuple[bytes, dict[str, bytes]]:
        start = self._file.read(_HEAD.size)
        if start[: len(MAGIC)] != MAGIC:
            raise self._foreign(start)
        if len(start) < _HEAD.size:
            raise self._damaged("it ends within its head")
        _, version, length = _HEAD.unpack(start)
        if version < 1:
            raise ArtifactError(f"{self._shown} has artifact format {version}", expected=f"1 to {FORMAT_VERSION}")
        if version > FORMAT_VERSION:
            raise ArtifactError(
                f"{self._shown} has artifact format {version}",
                expected=f"at most {FORMAT_VERSION}",
                fix="pip install --upgrade evalmode",
            )
        self._digest.update(start)
        self._position = len(start)
        if length > min(_LARGEST_MANIFEST, self._end - self._position):
            raise self._damaged(f"its manifest claims {length:,} bytes")
        manifest = self._take(length)
        records = self._table(manifest)
        sections = {}
        for record in records:
            self._skip(record.offset - self._position)
            if wanted is None or record.name in wanted:
                sections[record.name] = self._take(record.length)
            else:
                self._skip(record.length)
        self._skip(self._end - self._position)
        if self._file.read(_DIGEST + 1) != self._digest.digest():
            raise self._damaged("its digest is not that of its bytes")
        self._require_tight(manifest, records)
        return manifest, sections

    def _table(self, manifest: bytes) -> tuple[SectionRecord, ...]:
        """The sections, in the order of the file, each within it."""
        try:
            records = msgspec.json.decode(manifest, type=_Table).sections
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise self._damaged("its manifest cannot be read") from error
        end = self._position
        for record in records:
            if not _NAME.fullmatch(record.name):
                raise self._damaged(f"it has a section named {record.name[:40]!r}")
            if record.offset < end or record.length < 0 or record.offset + record.length > self._end:
                raise self._damaged(f"its section {record.name} lies outside the file, or over another one")
            end = record.offset + record.length
        if len({record.name for record in records}) != len(records):
            raise self._damaged("two of its sections have one name")
        return records

    def _require_tight(self, manifest: bytes, records: tuple[SectionRecord, ...]) -> None:
        """No bytes lie between or behind the sections but those that align them."""
        position = _HEAD.size + len(manifest)
        for record in records:
            if record.offset != _aligned(position):
                raise self._damaged(f"bytes that belong to no section lie before {record.name}")
            position = record.offset + record.length
        if position != self._end:
            raise self._damaged("bytes that belong to no section lie behind the last one")

    def _take(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) != length:
            raise self._damaged("it is shorter than its head says")
        self._digest.update(data)
        self._position += length
        return data

    def _skip(self, length: int) -> None:
        while length > 0:
            block = min(length, _BLOCK)
            self._take(block)
            length -= block

    def _damaged(self, why: str) -> ArtifactError:
        return ArtifactError(
            f"{self._shown} is damaged: {why}",
            expected="every byte as `save` wrote it",
            fix="copy it again, or save it anew",
        )

    def _foreign(self, start: bytes) -> ArtifactError:
        what = next((name for sign, name in _FOREIGN.items() if start.startswith(sign)), "something else")
        if not start:
            what = "empty"
        elif MAGIC.startswith(start):
            return self._damaged("it ends within its head")
        return ArtifactError(
            f"{self._shown} is no artifact of evalmode: it is {what}",
            expected="a file that `OptimizedPredictor.save` or `evalmode optimize -o` wrote",
        )


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT
