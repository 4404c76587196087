"""A file appears whole under its name, or not at all."""

import os
import threading

import pytest

from evalmode.atomic_file import atomic_file


def test_a_block_that_ends_well_replaces_the_file(tmp_path):
    target = tmp_path / "folder" / "file"
    for content in (b"old", b"new"):
        with atomic_file(target) as file:
            file.write(content)
            assert not target.exists() or target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o644
    assert os.listdir(target.parent) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_file(target) as file:
        file.write(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_place_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"[Nn]ot a directory|exists"), atomic_file(tmp_path / "file" / "below"):
        raise AssertionError("the block must not run")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_written_into_and_a_link_stays_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    seen = []
    reader = threading.Thread(target=lambda: seen.append(pipe.read_bytes()))
    reader.start()
    with atomic_file(pipe) as file:
        file.write(b"whole")
    reader.join(20)
    assert seen == [b"whole"]
    assert pipe.is_fifo()
    link, place = tmp_path / "link", tmp_path / "place"
    place.write_bytes(b"old")
    link.symlink_to(place)
    with atomic_file(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert place.read_bytes() == b"new"


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="no such names here")
def test_what_a_shell_hands_over_as_a_file_is_written_into():
    read, write = os.pipe()
    with atomic_file(f"/dev/fd/{write}") as file:
        file.write(b"whole")
    os.close(write)
    assert os.read(read, 100) == b"whole"
    os.close(read)
