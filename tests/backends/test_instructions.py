"""Which precisions are offered on processors that are not at hand: the probe is replaced by what they report."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.backends.programs import BY_NAME

from evalmode.backends.catalog import backend_named, backends
from evalmode.backends.configuration import Configuration
from evalmode.backends.instructions import Instructions, instructions


@pytest.fixture(autouse=True)
def read_anew() -> Iterator[None]:
    instructions.cache_clear()
    yield
    instructions.cache_clear()


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({"avx2": True}, Instructions()),
        ({"avx512_f": True, "avx512_bf16": False}, Instructions()),
        ({"avx512_bf16": True}, Instructions(bf16=True)),
        ({"amx_tile": True, "amx_bf16": True}, Instructions(bf16=True, amx=True)),
        ({"amx_tile": True, "amx_bf16": True, "amx_fp16": True}, Instructions(bf16=True, fp16=True, amx=True)),
        ({"avx512_fp16": True}, Instructions(fp16=True)),
    ],
)
def test_the_processor_is_believed(
    monkeypatch: pytest.MonkeyPatch, reported: dict[str, bool], expected: Instructions
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: reported, raising=False)
    assert instructions() == expected
    offered = {backend.name: backend.precisions("cpu") for backend in backends()}
    with_bf16 = {"eager", "inductor", "aot_inductor", "openvino"} if expected.bf16 else set()
    assert {name for name, precisions in offered.items() if "bf16" in precisions} == with_bf16


def test_it_agrees_with_the_kernel() -> None:
    from pathlib import Path

    text = Path("/proc/cpuinfo")
    if not text.exists() or "flags" not in text.read_text(encoding="utf-8"):
        pytest.skip("the kernel lists no flags here")
    flags = set(next(line for line in text.read_text(encoding="utf-8").splitlines() if "flags" in line).split())
    assert instructions().bf16 == bool(flags & {"avx512_bf16", "amx_bf16"})
    assert instructions().amx == ("amx_tile" in flags)


@pytest.mark.parametrize("name", ["convolution", "attention", "odd outputs"])
def test_eager_in_bf16_is_near_and_answers_in_the_dtypes_of_the_model(name: str) -> None:
    case = BY_NAME[name]
    program = case.program(export=False)
    executor = backend_named("eager").build(program, Configuration(backend="eager", batch=4, precision="bf16"))
    chunk = case.inputs(4)
    (answer,) = executor.run([chunk])
    expected = case.expected(program, chunk)
    assert [(a.dtype, a.shape) for a in answer] == [(e.dtype, e.shape) for e in expected]
    floating = [(a, e) for a, e in zip(answer, expected, strict=True) if a.is_floating_point()]
    for got, wanted in floating:
        torch.testing.assert_close(got, wanted, rtol=0.1, atol=0.1)
    assert any(not torch.equal(got, wanted) for got, wanted in floating)  # it did compute in another precision
    assert all(parameter.dtype is torch.float32 for parameter in program.module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inductor", "aot_inductor"])
def test_compiled_bf16_is_near_and_answers_in_the_dtypes_of_the_model(name: str) -> None:
    case = BY_NAME["convolution"]
    program = case.program()
    executor = backend_named(name).build(program, Configuration(backend=name, batch=2, precision="bf16"))
    chunk = case.inputs(2)
    (answer,) = executor.run([chunk])
    (expected,) = case.expected(program, chunk)
    assert answer[0].dtype is torch.float32
    torch.testing.assert_close(answer[0], expected, rtol=0.1, atol=0.1)
    assert not torch.allclose(answer[0], expected, rtol=1e-5, atol=1e-6)
