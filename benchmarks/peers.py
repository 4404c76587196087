"""The peers of benchmarks/optimize.py, each built and run as its own documentation says.

Every function takes the model in evaluation mode, a batch, a precision and whether latency or throughput is wanted, and
gives a call that runs one batch and answers with a tensor. They raise whatever the peer raises: the table says `fails`.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], Tensor]
FLIGHT = 4  # batches in flight for OpenVINO's throughput hint; one call of the peer runs so many, and is timed as such


def plain(model: nn.Module, batch: Tensor) -> Call:
    """`model.eval()` and `torch.inference_mode()`: what most people deploy."""

    def run() -> Tensor:
        with torch.inference_mode():
            outputs: Tensor = model(batch)
            return outputs

    return run


def autocast(model: nn.Module, batch: Tensor, precision: str, hint: str) -> Call:
    """`torch.autocast` around plain evaluation, in inference mode.

    Source: https://docs.pytorch.org/docs/stable/amp.html
    """
    return _warm(_in_precision(copy.deepcopy(model), batch, precision))


def compiled(model: nn.Module, batch: Tensor, precision: str, hint: str) -> Call:
    """`torch.compile(model)` with its default settings.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.compile.html
    """
    return _warm(_in_precision(torch.compile(copy.deepcopy(model)), batch, precision))


def inductor_freezing(model: nn.Module, batch: Tensor, precision: str, hint: str) -> Call:
    """`torch.compile` with `freezing`, as the page on Inductor for CPUs recommends for inference.

    Source: https://docs.pytorch.org/tutorials/unstable/inductor_cpp_wrapper_tutorial.html and `TORCHINDUCTOR_FREEZING`.
    """
    function = torch.compile(copy.deepcopy(model), options={"freezing": True})
    return _warm(_in_precision(function, batch, precision, torch.no_grad))


def aot_inductor(model: nn.Module, batch: Tensor, precision: str, hint: str) -> Call:
    """`torch.export`, `aoti_compile_and_package` with `freezing`, `aoti_load_package`.

    Source: https://docs.pytorch.org/docs/stable/user_guide/torch_compiler/torch.compiler_aot_inductor.html
    """
    typed, inputs = _converted(model, batch, precision)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        exported = torch.export.export(typed, (inputs,))
        path = torch._inductor.aoti_compile_and_package(  # noqa: SLF001 - the documented entry
            exported, package_path=str(Path(folder) / "model.pt2"), inductor_configs={"freezing": True}
        )
        loaded = torch._inductor.aoti_load_package(path)  # noqa: SLF001 - as above

    def run() -> Tensor:
        with torch.inference_mode():
            outputs: Tensor = loaded(inputs)
            return outputs

    return _warm(run)


def onnxruntime(model: nn.Module, batch: Tensor, precision: str, hint: str) -> Call:
    """`torch.onnx.export` and an `InferenceSession` on the CPU provider, default options.

    Source: https://onnxruntime.ai/docs/get-started/with-python.html
    """
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(copy.deepcopy(model), (batch,), str(path), dynamo=True, verbose=False)
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: batch.numpy()}
    return _warm(lambda: torch.from_numpy(session.run(None, feed)[0]))


def openvino(model: nn.Module, batch: Tensor, precision: str, hint: str) -> Call:
    """`convert_model`, and `compile_model` with the documented latency or throughput hint.

    A model whose trace does not convert is handed over as `torch.export` makes it, the other documented way.
    With the throughput hint `AsyncInferQueue` keeps several batches in flight, as its documentation asks for; the
    caller divides by `FLIGHT`.

    Source: https://docs.openvino.ai/2026/openvino-workflow/running-inference/optimize-inference.html and
    https://docs.openvino.ai/2026/openvino-workflow/model-preparation/convert-model-pytorch.html
    """
    import openvino as ov

    core = ov.Core()
    try:
        converted = ov.convert_model(copy.deepcopy(model), example_input=batch, input=[list(batch.shape)])
    except Exception:  # noqa: BLE001 - whatever a trace or its conversion raises
        with torch.no_grad():
            converted = ov.convert_model(torch.export.export(copy.deepcopy(model), (batch,)))
    settings = {
        "PERFORMANCE_HINT": hint.upper(),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }
    ready = core.compile_model(converted, "CPU", settings)
    array = batch.numpy()
    if hint == "latency":
        return _warm(lambda: torch.from_numpy(ready([array])[0]))
    queue = ov.AsyncInferQueue(ready)
    answers: list[Any] = []
    queue.set_callback(lambda request, _: answers.append(request.get_output_tensor(0).data.copy()))

    def run() -> Tensor:
        answers.clear()
        for _ in range(FLIGHT):
            queue.start_async([array])
        queue.wait_all()
        return torch.from_numpy(answers[0])

    return _warm(run)


def _converted(model: nn.Module, batch: Tensor, precision: str) -> tuple[nn.Module, Tensor]:
    if precision == "fp32":
        return copy.deepcopy(model), batch
    typed = copy.deepcopy(model).to(torch.bfloat16)
    return typed, batch.to(torch.bfloat16) if batch.is_floating_point() else batch


def _in_precision(function: Any, batch: Tensor, precision: str, mode: Any = torch.inference_mode) -> Call:
    def run() -> Tensor:
        with mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs: Tensor = function(batch)
            return outputs

    return run


def _warm(run: Call) -> Call:
    for _ in range(3):
        run()
    return run


Peer = Callable[[nn.Module, Tensor, str, str], Call]
_COMPILERS: dict[str, Peer] = {
    "torch.compile": compiled,
    "inductor freezing": inductor_freezing,
    "aot inductor": aot_inductor,
}
PEERS: dict[str, dict[str, Peer]] = {
    "fp32": {**_COMPILERS, "onnxruntime": onnxruntime, "openvino": openvino},
    "bf16": {"autocast": autocast, **_COMPILERS, "openvino": openvino},  # ONNX Runtime has no bf16 on processors
}
