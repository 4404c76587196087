"""The back ends of torch on a GPU: run wherever one is at hand."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from tests.backends.programs import BY_NAME, Outputs

from evalmode.backends.catalog import backend_named
from evalmode.backends.configuration import Configuration
from evalmode.backends.program import Program
from evalmode.backends.quiet import quiet

pytestmark = pytest.mark.gpu
MARGIN = {"fp32": 1e-5, "tf32": 1e-2, "fp16": 2e-2, "bf16": 1e-1}


def on_gpu(name: str) -> Program:
    program = BY_NAME[name].program(export=False)
    module, inputs = program.module.cuda(), tuple(tensor.cuda() for tensor in program.inputs)
    with torch.no_grad(), quiet():
        exported = torch.export.export(module, inputs, strict=False)
    return replace(program, module=module, inputs=inputs, exported=exported, dynamic=False)


@pytest.mark.parametrize("name", ["eager", "inductor", "aot_inductor"])
@pytest.mark.parametrize("precision", MARGIN)
def test_every_precision_is_near_and_answers_in_the_dtypes_of_the_model(name: str, precision: str) -> None:
    backend = backend_named(name)
    if precision not in backend.precisions("cuda"):
        pytest.skip(f"{name} has no {precision} here")
    program = on_gpu("convolution")
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    executor = backend.build(
        program, Configuration(backend=name, batch=program.batch, precision=precision, device="cuda")
    )
    (answer,) = executor.run([program.inputs])
    exact = program.module.double()(*(tensor.double() for tensor in program.inputs))
    assert answer[0].dtype is torch.float32
    assert answer[0].is_cuda
    torch.testing.assert_close(answer[0].double(), exact[0], rtol=MARGIN[precision], atol=MARGIN[precision])
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == flags


@pytest.mark.parametrize("name", ["eager", "inductor", "aot_inductor"])
def test_threads_and_streams_of_the_caller_do_not_meet(name: str) -> None:
    program = on_gpu("convolution")
    executor = backend_named(name).build(program, Configuration(backend=name, batch=program.batch, device="cuda"))
    chunks: list[Outputs] = [tuple(torch.randn_like(tensor) for tensor in program.inputs) for _ in range(8)]
    expected = [executor.run([chunk])[0][0].clone() for chunk in chunks]
    torch.cuda.synchronize()
    wrong: list[int] = []

    def hammer(first: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for turn in range(20):
                position = (first + turn) % len(chunks)
                if not torch.equal(executor.run([chunks[position]])[0][0], expected[position]):
                    wrong.append(position)

    threads = [threading.Thread(target=hammer, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
