"""What every back end promises, held against every entry of the catalog.

The compilers of torch take seconds for each build, so they run on fewer programs than the others.
"""

from __future__ import annotations

import copy
import logging
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.backends.programs import BY_NAME, CASES, Case, simple

from evalmode.backends.backend import Backend, Chunk, Executor
from evalmode.backends.catalog import BACKEND_NAMES, backend_named, backends, page_for, pages
from evalmode.backends.configuration import Configuration
from evalmode.backends.program import Program
from evalmode.errors import BackendError, UsageError

QUICK = tuple(name for name in BACKEND_NAMES if "inductor" not in name)
SLOW_CASES = ("convolution", "odd outputs")
PAIRS = [(name, case) for name in BACKEND_NAMES for case in CASES if name in QUICK or case.name in SLOW_CASES]


@pytest.fixture(autouse=True)
def usable_here(request: pytest.FixtureRequest) -> None:
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if name and backend_named(name).missing():
        pytest.skip(f"{name} is {backend_named(name).missing()}")


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
    yield
    patch.undo()


_built: dict[tuple[str, str], tuple[Program, Executor]] = {}


def built(name: str, case: Case) -> tuple[Program, Executor]:
    """One executor of four samples for a back end and a case, shared by the tests."""
    if (name, case.name) not in _built:
        program = case.program()
        configuration = Configuration(backend=name, batch=4, threads=torch.get_num_threads())
        _built[name, case.name] = program, backend_named(name).build(program, configuration)
    return _built[name, case.name]


def copies(chunks: list[Chunk]) -> list[Chunk]:
    return [tuple(tensor.clone() for tensor in chunk) for chunk in chunks]


def same(first: list[Chunk], second: list[Chunk]) -> bool:
    pairs = [(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def state() -> dict[str, object]:
    import torch._inductor.config as inductor

    return {
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "stream": torch.get_rng_state().tolist(),
        "others' streams": (random.getstate(), str(np.random.get_state())),
        "warnings": list(warnings.filters),
        "levels": {name: logging.getLogger(name).level for name in ("torch.onnx", "torch._dynamo", "onnxscript", "")},
        "inductor": (inductor.freezing, inductor.cpp.threads),
        "printing": (sys.stdout, sys.stderr),
    }


@pytest.mark.parametrize(("name", "case"), PAIRS, ids=lambda value: getattr(value, "name", value))
def test_the_answers_are_those_of_the_module_in_float64(name: str, case: Case) -> None:
    program, executor = built(name, case)
    chunks = [case.inputs(4) for _ in range(3)]
    answers = executor.run(copies(chunks))
    for chunk, answer in zip(chunks, answers, strict=True):
        expected = case.expected(program, chunk)
        assert [(a.dtype, a.shape) for a in answer] == [(e.dtype, e.shape) for e in expected]
        for got, wanted in zip(answer, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "case"), PAIRS, ids=lambda value: getattr(value, "name", value))
def test_outputs_are_ordinary_and_nobody_elses(name: str, case: Case) -> None:
    _, executor = built(name, case)
    chunk = case.inputs(4)
    given = copies([chunk])
    (first,) = executor.run(given)
    if name in QUICK and case.name != "writes into its input":
        assert same(given, [chunk])
    kept = copies([first])
    executor.run(copies([case.inputs(4)]))
    assert same([first], kept)  # a later call wrote into nothing
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in first)
    for tensor in first:
        tensor.fill_(1)  # and nobody notices
    assert same(executor.run(copies([chunk])), kept)


@pytest.mark.parametrize(("name", "case"), PAIRS, ids=lambda value: getattr(value, "name", value))
def test_outputs_are_written_into_given_memory_or_nothing_is_run(name: str, case: Case) -> None:
    _, executor = built(name, case)
    chunk = case.inputs(4)
    (expected,) = executor.run(copies([chunk]))
    room = tuple(torch.full_like(tensor, 3, memory_format=torch.contiguous_format) for tensor in expected)
    untouched = copies([room])[0]
    with torch.inference_mode():
        written = executor.run_into(copies([chunk])[0], room)
    assert same([room], [expected]) if written else same([room], [untouched])
    odd = tuple(torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape) for tensor in expected)
    before = copies([odd])
    assert not executor.run_into(copies([chunk])[0], odd) and same([odd], before)  # nothing in it is aligned
    assert written or name != "onnxruntime" or case.name != "convolution"
    if executor.run_into(copies([chunk])[0], (room[0], *odd[1:])):
        assert same([(room[0], *odd[1:])], [expected])


@pytest.mark.parametrize(("name", "case"), PAIRS, ids=lambda value: getattr(value, "name", value))
def test_a_payload_makes_the_same_executor(name: str, case: Case) -> None:
    backend = backend_named(name)
    _, executor = built(name, case)
    payload = executor.payload()
    assert (payload is None) == (backend.load is None)
    if payload is None or backend.load is None:
        return
    outputs = len(case.output_axes)
    loaded = backend.load(payload, executor.configuration, outputs)
    chunks = [case.inputs(4) for _ in range(2)]
    assert same(loaded.run(copies(chunks)), executor.run(copies(chunks)))
    assert loaded.payload() == payload
    for broken in (payload[:-1], payload + b"x", b"x" + payload, b"", payload[: len(payload) // 2]):
        with pytest.raises(BackendError):
            backend.load(broken, executor.configuration, outputs)
    with pytest.raises(BackendError):
        backend.load(payload, executor.configuration, outputs + 1)


@pytest.mark.parametrize("name", BACKEND_NAMES)
def test_what_the_calling_thread_has_on_changes_nothing(name: str) -> None:
    case = BY_NAME["convolution"]
    _, executor = built(name, case)
    chunks = [case.inputs(4)]
    expected = executor.run(chunks)
    with torch.inference_mode():
        made = copies(chunks)
        inside = executor.run(made)
        assert not inside[0][0].is_inference()
    with torch.autocast("cpu", torch.bfloat16):
        cast = executor.run(chunks)
    leaves = [tuple(tensor.clone().requires_grad_() for tensor in chunk) for chunk in chunks]
    tracked = executor.run(leaves)
    assert not tracked[0][0].requires_grad
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    threaded = executor.run(chunks)
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)
    assert all(same(expected, found) for found in (inside, cast, tracked, threaded))


@pytest.mark.parametrize("name", BACKEND_NAMES)
def test_calls_from_many_threads_do_not_meet(name: str) -> None:
    case = BY_NAME["odd outputs"]
    _, executor = built(name, case)
    chunks = [case.inputs(4) for _ in range(12)]
    expected = [executor.run([chunk])[0] for chunk in chunks]
    wrong: list[int] = []

    def hammer(first: int) -> None:
        for turn in range(15):
            position = (first + turn) % len(chunks)
            if not same(executor.run([chunks[position]]), [expected[position]]):
                wrong.append(position)

    threads = [threading.Thread(target=hammer, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", [backend.name for backend in backends() if backend.streams])
def test_streams_and_threads_give_the_same_answers(name: str) -> None:
    case = BY_NAME["convolution" if name in QUICK else "odd outputs"]
    program = case.program()
    chunks = [case.inputs(2) for _ in range(7)]
    found = []
    for threads, streams in ((1, 1), (1, 3), (2, 1)) if name in QUICK else ((1, 2),):
        configuration = Configuration(backend=name, batch=2, threads=threads, streams=streams)
        executor = backend_named(name).build(program, configuration)
        found.append(executor.run(copies(chunks)))
        assert same(found[-1], executor.run(copies(chunks)))
        assert same(found[-1], [executor.run([chunk])[0] for chunk in chunks])
    for answers in found:
        for chunk, answer in zip(chunks, answers, strict=True):
            for got, wanted in zip(answer, case.expected(program, chunk), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("passing", ["clone", "detach", "view_as"])
def test_large_tensors_are_handed_over_without_harm(name: str, passing: str) -> None:
    """OpenVINO computes of zeros where an output that is handed over is an input as it is."""

    def both(x: torch.Tensor) -> Chunk:
        return ((x.view_as(x) if passing == "view_as" else getattr(x, passing)()), x * 2 + 1, x.flatten(1))

    x = torch.randn(2, 600, 600)
    executor = backend_named(name).build(simple(both, x), Configuration(backend=name, batch=2))
    given = [(torch.randn_like(x),) for _ in range(3)]
    kept = copies(given)
    answers = executor.run(given)
    assert same(given, kept)
    assert same(answers, [both(*chunk) for chunk in kept])
    only = backend_named(name).build(simple(lambda x: (x * 2 + 1,), x), Configuration(backend=name, batch=2))
    assert same(only.run(given), [(chunk[0] * 2 + 1,) for chunk in kept])


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_size_whether_the_graph_is_free_or_not(name: str, batch: int) -> None:
    case = BY_NAME["recurrent"]
    for dynamic in (True, False):
        program = case.program(dynamic=dynamic)
        executor = backend_named(name).build(program, Configuration(backend=name, batch=batch))
        chunk = case.inputs(batch)
        for got, wanted in zip(executor.run([chunk])[0], case.expected(program, chunk), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKEND_NAMES)
def test_building_changes_neither_the_program_nor_the_process(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    case = BY_NAME["convolution"]
    program = case.program()
    tensors = copy.deepcopy(program.module.state_dict())
    inputs = copies([program.inputs])
    graph = str(program.exported.graph) if program.exported is not None else ""
    torch.rand(1)
    before = state()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        before["warnings"] = list(warnings.filters)
        backend_named(name).build(program, Configuration(backend=name, batch=4))
        assert state() == before
    assert seen == []
    assert "".join(capfd.readouterr()) == ""
    assert all(torch.equal(value, tensors[key]) for key, value in program.module.state_dict().items())
    assert same([program.inputs], inputs)
    assert str(program.exported.graph if program.exported is not None else "") == graph
    assert not program.module.training


@pytest.mark.parametrize("name", BACKEND_NAMES)
def test_a_program_without_a_graph_is_refused_or_run(name: str) -> None:
    backend = backend_named(name)
    program = simple(lambda x: (x * 2 if x.sum() > 0 else x * 3,), torch.ones(2, 3), export=False)
    configuration = Configuration(backend=name, batch=2)
    if backend.needs_export:
        with pytest.raises(BackendError, match=r"cannot be exported: asked(.|\n)*eager"):
            backend.build(program, configuration)
        return
    executor = backend.build(program, configuration)
    answers = executor.run([(torch.ones(2, 3),), (-torch.ones(2, 3),)])
    assert [float(answer[0].mean()) for answer in answers] == [2, -3]


def build_or_refuse(name: str, program: Program) -> tuple[Executor | None, str]:
    try:
        return backend_named(name).build(program, Configuration(backend=name, batch=2)), ""
    except BackendError as error:
        return None, error.got


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.complex64]
)
def test_every_element_type_works_or_is_refused(name: str, dtype: torch.dtype) -> None:
    x = torch.randint(0, 2, (2, 6)).to(dtype)
    program = simple(lambda x: (x.view(-1), x.flip(1), torch.cat([x, x], 1)), x)
    executor, refused = build_or_refuse(name, program)
    if executor is not None:
        assert same(executor.run([(x,)]), [program.module(x)])
    else:
        assert name != "eager"
        assert len(refused.splitlines()) == 1 and 20 < len(refused) < 300


@pytest.mark.parametrize(
    "name", [backend.name for backend in backends() if backend.needs_export and backend.name in QUICK]
)
def test_state_of_its_own_is_refused_by_name(name: str) -> None:
    class Counts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> Chunk:
            self.calls += 1
            return (x + self.calls,)

    module = Counts().eval()
    x = torch.zeros(2, 3)
    with torch.no_grad():
        exported = torch.export.export(copy.deepcopy(module), (x,), strict=False)
    program = Program(module, (x,), ("x",), (0,), (0,), exported, False)
    with pytest.raises(BackendError, match="calls"):
        backend_named(name).build(program, Configuration(backend=name, batch=2))


@pytest.mark.parametrize("name", BACKEND_NAMES)
def test_a_closed_executor_says_so(name: str) -> None:
    if name not in QUICK:
        pytest.skip("shares the executor of eager, and takes long to build")
    case = BY_NAME["convolution"]
    executor = backend_named(name).build(case.program(), Configuration(backend=name, batch=2))
    executor.close()
    with pytest.raises(BackendError, match="closed"):
        executor.run([case.inputs(2)])


@pytest.mark.parametrize("backend", backends(), ids=lambda backend: backend.name)
def test_every_entry_says_what_it_is(backend: Backend) -> None:
    assert backend == backend_named(backend.name)
    assert backend.version()
    precisions = backend.precisions("cpu")
    assert precisions[0] == "fp32"
    assert backend.precisions("meta")[1:] == ()
    if not torch.cuda.is_available():
        assert backend.precisions("cuda") == ()
    page = pages()[backend.name]
    assert page.title.startswith(f"{backend.name}: ")
    assert f'backends=["{backend.name}"]' in page.code_block("Example")
    assert page_for(backend.name.replace("_", "-")) == page


def test_an_unknown_back_end_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"there is no back end 'openvno'(.|\n)*aot_inductor(.|\n)*write 'openvino'"):
        backend_named("openvno")
    assert page_for("nothing") is None


def test_the_catalog_imports_no_third_party_package_and_its_pages_no_torch() -> None:
    code = (
        "import sys; from evalmode.backends.catalog import pages, backends; pages(); "
        "assert 'torch' not in sys.modules; backends(); "
        "sys.exit(bool({'openvino', 'onnx', 'onnxruntime', 'onnxscript'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_file_with_a_page_is_in_the_catalog() -> None:
    folder = Path(sys.modules["evalmode.backends.catalog"].__file__ or "").parent
    written = {path.stem for path in folder.glob("*.py") if "\nWhat it does\n" in path.read_text(encoding="utf-8")}
    assert written == set(BACKEND_NAMES)
