"""What a back end cannot do is said in one line, with the operator and the way out; nothing wrong is ever answered."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from tests.backends.programs import BY_NAME, simple
from torch import nn

from evalmode.backends import inductor, onnx_file, onnxruntime, openvino
from evalmode.backends.backend import Backend
from evalmode.backends.catalog import backend_named
from evalmode.backends.configuration import Configuration
from evalmode.backends.packing import pack, unpack
from evalmode.backends.program import Program
from evalmode.backends.refusal import refusal
from evalmode.errors import BackendError, MissingExtraError

GRAPHS = ("onnxruntime", "openvino")


@pytest.fixture(params=GRAPHS)
def backend(request: pytest.FixtureRequest) -> Backend:
    found = backend_named(request.param)
    if found.missing():
        pytest.skip(f"{found.name} is {found.missing()}")
    return found


def built(backend: Backend, program: Program, batch: int = 2) -> object:
    return backend.build(program, Configuration(backend=backend.name, batch=batch))


def without(packages: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    for module in (openvino, onnxruntime, onnx_file):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name in packages else find(name))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_missing_package_is_named_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without({name}, monkeypatch)
    backend = backend_named(name)
    assert backend.missing() == "not installed: pip install 'evalmode[optimize]'"
    assert backend.version() == name
    with pytest.raises(MissingExtraError, match=r"not installed(.|\n)*pip install 'evalmode\[optimize\]'"):
        built(backend, BY_NAME["convolution"].program())
    assert backend.load is not None
    with pytest.raises(MissingExtraError):
        backend.load(b"", Configuration(backend=name, batch=1), 1)


def test_onnx_is_needed_to_build_and_not_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_named("onnxruntime")
    if backend.missing():
        pytest.skip("onnxruntime is not installed")
    program = BY_NAME["convolution"].program()
    executor = backend.build(program, Configuration(backend="onnxruntime", batch=2))
    payload = executor.payload()
    without({"onnx", "onnxscript"}, monkeypatch)
    assert backend.missing() is None
    with pytest.raises(MissingExtraError):
        built(backend, program)
    assert payload is not None and backend.load is not None
    chunk = BY_NAME["convolution"].inputs(2)
    loaded = backend.load(payload, executor.configuration, 1)
    assert torch.equal(loaded.run([chunk])[0][0], executor.run([chunk])[0][0])


def test_without_a_compiler_the_compilers_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "apt install g++" in (backend_named("inductor").missing() or "")
    assert backend_named("aot_inductor").missing() is None  # a payload runs all the same
    for name in ("inductor", "aot_inductor"):
        with pytest.raises(MissingExtraError, match=r"without a C\+\+ compiler(.|\n)*apt install g\+\+"):
            built(backend_named(name), BY_NAME["convolution"].program())
    assert inductor.compiler_missing()


def test_the_compiler_that_the_environment_names_is_the_one_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert inductor.compiler_missing()


def test_an_operator_without_conversion_is_named(backend: Backend) -> None:
    program = simple(lambda x: (torch.linalg.qr(x)[0],), torch.eye(3).repeat(2, 1, 1))
    with pytest.raises(BackendError, match=r"aten\.linalg_qr") as caught:
        built(backend, program)
    assert "\n" not in caught.value.got
    assert caught.value.__cause__ is not None


def test_an_output_whose_shape_depends_on_values_is_never_cut_short(backend: Backend) -> None:
    program = simple(lambda x: (x[x > 0],), torch.tensor([[1.0, -1.0], [2.0, 3.0]]))
    try:
        executor = backend.build(program, Configuration(backend=backend.name, batch=2))
    except BackendError:
        return
    for x in (-torch.ones(2, 2), torch.ones(2, 2)):
        with pytest.raises(BackendError):
            executor.run([(x,)])


def test_integers_beyond_32_bits_are_exact_or_refused(backend: Backend) -> None:
    program = simple(lambda x: (x + 1,), torch.ones(2, 3, dtype=torch.int64))
    executor = backend.build(program, Configuration(backend=backend.name, batch=2))
    for value in (2**31 - 2, -(2**31), 2**31, 2**40, -(2**33)):
        x = torch.full((2, 3), value)
        try:
            (answer,) = executor.run([(x,)])
        except BackendError:
            assert not -(2**31) <= value < 2**31
        else:
            assert torch.equal(answer[0], x + 1)


def test_a_model_that_computes_nothing_is_refused(backend: Backend) -> None:
    with pytest.raises(BackendError, match="computes nothing"):
        built(backend, simple(lambda x: (x, x), torch.ones(2, 3)))


def test_a_payload_of_another_back_end_is_refused() -> None:
    case = BY_NAME["convolution"]
    made = {name: backend_named(name) for name in GRAPHS if not backend_named(name).missing()}
    for name, backend in made.items():
        executor = backend.build(case.program(), Configuration(backend=name, batch=2))
        payload = executor.payload()
        assert payload is not None
        for other in made.values():
            if other is not backend and other.load is not None:
                with pytest.raises(BackendError):
                    other.load(payload, executor.configuration, 1)


def test_an_onnx_payload_reads_no_file_of_this_machine(tmp_path: Path) -> None:
    backend = backend_named("onnxruntime")
    if backend.missing() or onnx_file.exporter_missing():
        pytest.skip("onnxruntime or onnx is not installed")
    import onnx

    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(16))
    program = simple(lambda x: (x + 1,), torch.ones(2, 2))
    executor = backend.build(program, Configuration(backend="onnxruntime", batch=2))
    payload = executor.payload()
    assert payload is not None and backend.load is not None
    parts = unpack(payload, ("interface", "constants", "model", "weights"))
    held = onnx.TensorProto(name="held", data_type=onnx.TensorProto.FLOAT, dims=[2, 2])
    held.data_location = onnx.TensorProto.EXTERNAL
    entry = held.external_data.add()
    entry.key = "location"
    graph = onnx.load_from_string(parts["model"]).graph
    for place in (os.path.relpath(secret, tempfile.gettempdir() + "/any"), str(secret)):
        entry.value = place
        adding = onnx.helper.make_node("Add", [graph.input[0].name, "held"], [graph.output[0].name])
        forged = onnx.helper.make_graph([adding], "forged", list(graph.input), list(graph.output), [held])
        model = onnx.helper.make_model(forged, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
        with pytest.raises(BackendError, match=r"(?i)path"):
            backend.load(pack({**parts, "model": model.SerializeToString()}), executor.configuration, 1)


@pytest.mark.parametrize("name", ["eager", *GRAPHS])
def test_a_module_that_fails_at_this_batch_size_is_refused(name: str) -> None:
    class Pairs(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (x.view(4, -1),)

    if backend_named(name).missing():
        pytest.skip(f"{name} is not installed")
    x = torch.ones(4, 3)
    module = Pairs().eval()
    with torch.no_grad():
        exported = torch.export.export(module, (x,), strict=False)
    program = Program(module, (x,), ("x",), (0,), (0,), exported, False)
    with pytest.raises(BackendError, match="fails on 3 samples") as caught:
        backend_named(name).build(program, Configuration(backend=name, batch=3))
    assert "\n" not in caught.value.got


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("No conversion rule found for operations: aten::fft_rfft", "`aten.fft_rfft`"),
        (
            "Traceback:\n File 'x'\nNo ONNX function found for <OpOverload(op='aten.foo', overload='default')>",
            "aten.foo",
        ),
        ("Model wasn't fully converted.\n-- aten.bar.default with a message:\nGot less", "`aten.bar.default`"),
        ("x" * 5000, "…"),
        ("", "ValueError"),
    ],
)
def test_a_long_message_becomes_one_line(text: str, shown: str) -> None:
    error = refusal("someone", ValueError(text))
    assert shown in error.got
    assert "\n" not in error.got
    assert len(error.got) < 330


def test_colours_of_a_terminal_are_no_part_of_the_reason() -> None:
    error = RuntimeError("\x1b[1;31mUnsupported\x1b[0m operator \x1b[33maten::fft_rfft\x1b[0m")
    told = refusal("onnxruntime", error, "convert").got
    assert "\x1b" not in told and "`aten.fft_rfft`" in told
