"""Files of back ends: written in pieces, whole, and gone with the folder."""

import io
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalmode.backends import folder as folder_module
from evalmode.backends.folder import Folder


@given(size=st.integers(0, 300_000))
def test_what_is_written_in_pieces_is_whole(size):
    data = os.urandom(size)
    folder = Folder()
    folder.write("weights", data)
    assert (folder.path / "weights").read_bytes() == data
    folder.rewrite("weights")
    assert (folder.path / "weights").read_bytes() == data
    assert [path.name for path in folder.path.iterdir()] == ["weights"]


class _Short(io.RawIOBase):
    """Takes at most seven bytes at a time, and none once it holds `most`."""

    def __init__(self, most):
        self.held, self.most = bytearray(), most

    def write(self, piece):
        if len(self.held) >= self.most:
            raise OSError(28, "No space left on device")
        taken = bytes(piece[:7])
        self.held += taken
        return len(taken)


def test_a_disk_that_takes_a_part_is_given_the_rest_and_a_full_one_is_told():
    file = _Short(100)
    folder_module._write(file, memoryview(b"0123456789" * 3))
    assert bytes(file.held) == b"0123456789" * 3
    with pytest.raises(OSError, match="No space left"):
        folder_module._write(_Short(14), memoryview(b"0123456789" * 3))


def test_the_folder_goes_with_its_last_user():
    folder = Folder()
    path = folder.path
    folder.write("weights", b"x")
    assert path.exists()
    del folder
    assert not path.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_child_leaves_the_folder_to_its_parent():
    code = """
import os, sys
from evalmode.backends.folder import Folder
folder = Folder()
child = os.fork()
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
print(folder.path.exists())
path = folder.path
del folder
print(path.exists())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    assert told.split() == ["True", "False"]
