"""Weights are held once: what a build leaves behind is measured by what is still alive."""

from __future__ import annotations

import gc
import mmap
import weakref
from pathlib import Path

import pytest
import torch
from tests.backends.programs import BY_NAME

from evalmode.backends.catalog import backend_named
from evalmode.backends.configuration import Configuration
from evalmode.backends.folder import Folder
from evalmode.backends.memory import release_file_pages


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_the_program_is_let_go_after_a_build(name: str) -> None:
    backend = backend_named(name)
    if backend.missing():
        pytest.skip(f"{name} is not installed")
    case = BY_NAME["attention"]
    program = case.program()
    chunk = case.inputs(2)
    weights = [weakref.ref(parameter) for parameter in program.module.parameters()]
    executor = backend.build(program, Configuration(backend=name, batch=2))
    expected = executor.run([chunk])[0]
    del program
    gc.collect()
    assert [weight().shape for weight in weights if weight() is not None] == []
    assert all(torch.equal(a, b) for a, b in zip(executor.run([chunk])[0], expected, strict=True))
    assert executor.payload()  # which needs the program no more


def test_eager_shares_the_weights_of_the_program() -> None:
    program = BY_NAME["attention"].program(export=False)
    before = {parameter.data_ptr() for parameter in program.module.parameters()}
    executor = backend_named("eager").build(program, Configuration(backend="eager", batch=2))
    executor.run([BY_NAME["attention"].inputs(2)])
    assert {parameter.data_ptr() for parameter in program.module.parameters()} == before
    weights = [weakref.ref(parameter) for parameter in program.module.parameters()]
    executor.close()
    del program
    gc.collect()
    assert all(weight() is None for weight in weights)


def test_two_sizes_share_one_file() -> None:
    backend = backend_named("openvino")
    if backend.missing():
        pytest.skip("openvino is not installed")
    program = BY_NAME["convolution"].program()
    executors = [backend.build(program, Configuration(backend="openvino", batch=batch)) for batch in (2, 4)]
    folders = {executor._folder.path for executor in executors}
    assert len(folders) == 1
    del program, executors
    gc.collect()
    assert not any(folder.exists() for folder in folders)


def test_released_pages_are_read_again(tmp_path: Path) -> None:
    content = bytes(range(256)) * 64
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == content
        released = release_file_pages(f"{tmp_path}/")
        if Path("/proc/self/smaps").exists():
            assert released >= len(content)
        assert mapped[:] == content
    assert release_file_pages(f"{tmp_path}/") == 0


def test_pages_that_were_written_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"a" * 4096)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:2] = b"bb"
        release_file_pages(f"{tmp_path}/")
        assert mapped[:3] == b"bba"


def test_a_folder_lives_as_long_as_its_object() -> None:
    folder = Folder()
    path = folder.path
    assert path.stat().st_mode & 0o077 == 0
    del folder
    gc.collect()
    assert not path.exists()
