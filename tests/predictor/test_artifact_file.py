"""Only a whole file of ours is read: any damage and any foreign file is refused with an ArtifactError."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalmode.errors import ArtifactError
from evalmode.predictor.artifact_file import FORMAT_VERSION, MAGIC, read_sections, write_sections

HEAD = struct.Struct("<12sIQ")
SECTIONS = {"payload.0": b"abc" * 30, "empty": b"", "probes": bytes(range(256))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "model.evalmode"
    return write_sections(path, {"written_by": "test"}, SECTIONS).read_bytes()


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        read_sections(path)
    return str(caught.value)


def crafted(manifest: Any, body: bytes, *, version: int = FORMAT_VERSION, length: int | None = None) -> bytes:
    """A file with a right digest, whatever it says."""
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    data = HEAD.pack(MAGIC, version, len(text) if length is None else length) + text + body
    return data + hashlib.sha256(data).digest()


def table(*sections: tuple[Any, Any, Any]) -> dict[str, Any]:
    return {"sections": [dict(zip(("name", "offset", "length"), each, strict=True)) for each in sections]}


@given(st.dictionaries(st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,9}", fullmatch=True), st.binary(max_size=300), max_size=5))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, sections: dict[str, bytes]) -> None:
    path = write_sections(tmp_path_factory.getbasetemp() / "round.evalmode", {"a": [1, None]}, sections)
    manifest, found = read_sections(path)
    assert found == sections and json.loads(manifest)["a"] == [1, None]
    for section in json.loads(manifest)["sections"]:
        start, length = section["offset"], section["length"]
        assert start % 64 == 0 and path.read_bytes()[start : start + length] == sections[section["name"]]


def test_only_wanted_sections_are_kept_and_all_are_digested(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "m").write_bytes(whole)
    assert read_sections(tmp_path / "m", wanted=())[1] == {}
    assert read_sections(tmp_path / "m", wanted=("probes",))[1] == {"probes": SECTIONS["probes"]}
    at = whole.index(SECTIONS["probes"])
    (tmp_path / "m").write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    with pytest.raises(ArtifactError, match="digest"):
        read_sections(tmp_path / "m", wanted=())


def test_every_flipped_byte_is_refused(tmp_path: Path, whole: bytes) -> None:
    for position in range(len(whole)):
        for flip in (0x01, 0xFF):
            data = bytearray(whole)
            data[position] ^= flip
            refused(tmp_path / "flipped", bytes(data))


def test_every_truncation_and_every_addition_is_refused(tmp_path: Path, whole: bytes) -> None:
    for length in range(len(whole)):
        refused(tmp_path / "short", whole[:length])
    for more in (b"\0", b"\0" * 64, whole):
        refused(tmp_path / "long", whole + more)


@given(st.data())
def test_any_other_damage_is_refused(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    changed = whole[:start] + data.draw(st.binary(max_size=80)) + whole[stop:]
    if changed != whole:
        refused(tmp_path_factory.getbasetemp() / "damaged", changed)


def foreign_files() -> dict[str, Callable[[Path], object]]:
    def zipped(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("../../escape", "x")

    return {
        "empty": lambda path: path.write_bytes(b""),
        "a zip file": zipped,
        "torch.save": lambda path: torch.save({"weight": torch.ones(2)}, path),
        "a pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
        "JSON": lambda path: path.write_text('{"format_version": 1}'),
        "something else, safetensors": lambda path: safetensors.torch.save_file({"weight": torch.ones(2)}, path),
        "something else, text": lambda path: path.write_text("hello"),
        "something else, zeros": lambda path: path.write_bytes(bytes(500)),
        "something else, text conversion": lambda path: path.write_bytes(MAGIC.replace(b"\r\n", b"\n") + bytes(99)),
    }


@pytest.mark.parametrize("kind", foreign_files())
def test_foreign_files_are_told_apart(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "foreign"
    foreign_files()[kind](path)
    expected = {"torch.save": "a zip file"}.get(kind, kind.partition(",")[0])
    with pytest.raises(ArtifactError, match=f"it is {expected}"):
        read_sections(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        read_sections(tmp_path / "missing")
    with pytest.raises(ArtifactError, match="no regular file"):
        read_sections(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="no regular file"):
        read_sections(tmp_path / "pipe")


def test_a_newer_format_asks_for_a_newer_version(tmp_path: Path) -> None:
    message = refused(tmp_path / "new", crafted({"unknown": 1}, b"", version=FORMAT_VERSION + 1))
    assert "artifact format 2" in message and "pip install --upgrade evalmode" in message


START = 64 * 3  # behind any manifest below
CRAFTED = {
    "a manifest longer than the file": ({}, b"", {"length": 1 << 20}),
    "a manifest of 16 exabytes": ({}, b"", {"length": (1 << 64) - 1}),
    "no table": ({}, b"", {}),
    "no JSON": (b"\xff\xfe", b"", {}),
    "deep JSON": (b"[" * 200_000, b"", {}),
    "a section past the end": (table(("a", START, 99)), bytes(8), {}),
    "a section of 8 exabytes": (table(("a", START, (1 << 63) - 1)), bytes(8), {}),
    "a section of more than 64 bits": (table(("a", START, 1 << 70)), bytes(8), {}),
    "a negative length": (table(("a", START, -1)), bytes(999), {}),
    "a negative offset": (table(("a", -64, 8)), bytes(999), {}),
    "a section over the head": (table(("a", 0, 8)), bytes(999), {}),
    "a name that is a path": (table(("../../etc/passwd", START, 0)), bytes(999), {}),
    "a name that is absolute": (table(("/etc/passwd", START, 0)), bytes(999), {}),
    "no name": (table(("", START, 0)), bytes(999), {}),
    "a name with a line break": (table(("a\n", START, 0)), bytes(999), {}),
    "a number for a name": (table((3, START, 0)), bytes(999), {}),
    "bytes behind the last section": (table(), b"hidden", {}),
    "a section that is not aligned": (table(("a", START + 1, 8)), bytes(999), {}),
}


@pytest.mark.parametrize("kind", CRAFTED)
def test_a_right_digest_makes_no_wrong_table_right(tmp_path: Path, kind: str) -> None:
    manifest, body, options = CRAFTED[kind]
    refused(tmp_path / "crafted", crafted(manifest, body, **options))


def test_two_sections_of_one_place_or_name_are_refused(tmp_path: Path) -> None:
    def file(*sections: tuple[str, int, int]) -> bytes:
        text = json.dumps(table(*sections)).encode().ljust(START - HEAD.size)
        return crafted(text, bytes(sections[-1][1] + sections[-1][2] - START))

    path = tmp_path / "crafted"
    path.write_bytes(file(("a", START, 8), ("b", START + 64, 8)))
    assert list(read_sections(path)[1]) == ["a", "b"]
    assert "over another one" in refused(path, file(("a", START, 8), ("b", START, 8)))
    assert "one name" in refused(path, file(("a", START, 8), ("a", START + 64, 8)))
    assert "belong to no section" in refused(path, file(("a", START, 8), ("b", START + 128, 8)))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "model.evalmode"
    write_sections(path, {}, SECTIONS)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left"):
        write_sections(path, {}, {"other": b"x"})
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    monkeypatch.undo()
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(ArtifactError, match="cannot write"):
        write_sections(tmp_path / "folder", {}, {})
    assert list(tmp_path.iterdir()) == [path.parent]
