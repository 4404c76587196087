"""openvino: the exported graph compiled by OpenVINO for this processor.

What it does
------------
Converts the exported graph to OpenVINO's intermediate representation once, gives it the execution's shape, and compiles
it. The precision is stated (`INFERENCE_PRECISION_HINT`): left to itself, OpenVINO computes in bf16 where the processor
can. Several executions are in flight at once where the plan has streams. Large inputs are read, and large outputs
written, in place.

Why it matters
--------------
On processors it is the fastest for most convolutional and many transformer models, with the most to gain from bf16, a
build takes seconds, and the payload is data: the representation executes nothing.

Example
-------
    import evalmode

    fast = evalmode.optimize(model, batch, backends=["openvino"])

Use instead
-----------
`onnxruntime` for recurrent models, `inductor` for a model that does not export.

Fix and its safety
------------------
Where an operator has no conversion the message names it: rewrite that line of the model, or use another back end.

Limits
------
Its processor plug-in computes float64 in fp32 and int64 in 32 bits: float64, bf16 and complex inputs and outputs are
refused when a plan is built, and larger integers when it is called. An output whose shape depends on values is refused.
OpenVINO reports its use to its maker when it is imported; evalmode imports it without that.

Source
------
https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
https://docs.openvino.ai/2026/openvino-workflow/running-inference/optimize-inference.html
"""

from __future__ import annotations

import functools
import os
import sys
import weakref
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch.export import ExportedProgram

from evalmode.backends.backend import Backend, Chunk, Executor
from evalmode.backends.configuration import Configuration
from evalmode.backends.folder import Folder
from evalmode.backends.instructions import instructions
from evalmode.backends.interface import Interface, interface_of
from evalmode.backends.memory import forget_last_export, release_file_pages
from evalmode.backends.onnx_file import MODEL, exporter_missing, onnx_file
from evalmode.backends.openvino_executor import OpenVinoExecutor
from evalmode.backends.packing import unpack
from evalmode.backends.portable import portable, reference_outputs
from evalmode.backends.program import Program
from evalmode.backends.quiet import quiet
from evalmode.backends.refusal import EXTRA, refusal, require
from evalmode.errors import BackendError

__all__ = ["OPENVINO"]

_EXCHANGED = (torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
_PARTS = ("interface", "constants", "model", "weights")


def _missing() -> str | None:
    return None if find_spec("openvino") else EXTRA


def _version() -> str:
    return f"openvino {version('openvino')}" if find_spec("openvino") else "openvino"


def _precisions(device: str) -> tuple[str, ...]:
    if device != "cpu":
        return ()
    return ("fp32", "bf16") if instructions().bf16 else ("fp32",)


_converted: weakref.WeakKeyDictionary[ExportedProgram, tuple[Folder, tuple[int, ...]]] = weakref.WeakKeyDictionary()


def _build(program: Program, configuration: Configuration) -> Executor:
    require("openvino", _missing())
    inputs = program.inputs_at(configuration.batch)
    reference = reference_outputs(program, configuration.batch)
    for tensor in (*inputs, *reference):
        if tensor.dtype not in _EXCHANGED:
            raise BackendError(f"openvino cannot exchange {tensor.dtype}", expected=", ".join(map(str, _EXCHANGED)))
    try:
        with quiet(), torch.inference_mode(mode=False), torch.no_grad():
            graph = portable(program, configuration.batch)
            folder, used = _representation(graph.exported)
    except Exception as error:
        raise refusal("openvino", error, "convert") from error
    finally:
        forget_last_export()
    interface = Interface.of(inputs, reference, graph.constants, graph.wiring, used)
    return _executor(folder, configuration, interface, graph.constants, inputs)


def _load(payload: bytes, configuration: Configuration, outputs: int) -> Executor:
    require("openvino", _missing())
    parts = unpack(payload, _PARTS)
    interface, constants = Interface.from_parts(parts, outputs)
    folder = Folder()
    folder.write("model.xml", parts["model"])
    folder.write("model.bin", parts["weights"])
    return _executor(folder, configuration, interface, constants, None)


def _representation(exported: ExportedProgram) -> tuple[Folder, tuple[int, ...]]:
    """A folder with the representation of a graph, and the inputs that it takes.

    It lies in files, not in memory: OpenVINO maps them, and what it has packed for itself is then given back.
    """
    known = _converted.get(exported)
    if known is not None:
        return known
    openvino = _openvino()
    model = _converted_model(exported)
    names = [str(name) for name in exported.graph_signature.user_inputs]
    taken = [sorted(port.get_names()) for port in model.inputs]
    if len(taken) == len(names):
        used = tuple(range(len(names)))
    else:
        found = [next((names.index(name) for name in port if name in names), None) for port in taken]
        if None in found:
            raise BackendError("openvino dropped an input, and does not say which")
        used = tuple(index for index in found if index is not None)
    folder = Folder()
    openvino.save_model(model, os.fspath(folder.path / "model.xml"), compress_to_fp16=False)
    folder.rewrite("model.bin")
    _converted[exported] = folder, used
    return folder, used


def _converted_model(exported: ExportedProgram) -> Any:
    """OpenVINO's own conversion; where it knows an operator not, by way of ONNX, which knows others."""
    openvino = _openvino()
    try:
        return openvino.convert_model(exported)
    except Exception as refused:
        if exporter_missing() is not None:
            raise
        try:
            folder, _ = onnx_file(exported)
            return openvino.convert_model(os.fspath(folder.path / MODEL))
        except Exception:  # noqa: BLE001 - the first refusal is the one to tell
            raise refused from None


def _executor(
    folder: Folder, configuration: Configuration, interface: Interface, constants: Chunk, example: Chunk | None
) -> Executor:
    try:
        with quiet():
            compiled = _compiled(folder, configuration, interface)
    except Exception as error:
        raise refusal("openvino", error, "compile") from error
    release_file_pages(f"{folder.path}/")  # its weights are packed elsewhere by now
    return OpenVinoExecutor(_openvino(), compiled, folder, configuration, interface, constants, example)


def _compiled(folder: Folder, configuration: Configuration, interface: Interface) -> Any:
    core = _core()
    model = core.read_model(os.fspath(folder.path / "model.xml"))
    if len(model.inputs) != len(interface.used) or len(model.outputs) != len(interface.computed):
        raise BackendError("the file has other inputs or outputs than the payload says")
    model.reshape({index: list(record.shape) for index, record in enumerate(interface.graph_inputs())})
    for port in model.outputs:
        if port.get_partial_shape().is_dynamic:
            raise BackendError(f"openvino: the shape of the output `{_name(port)}` depends on values")
    settings = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[configuration.precision],
        "EXECUTION_MODE_HINT": "ACCURACY" if configuration.precision == "fp32" else "PERFORMANCE",
        "NUM_STREAMS": configuration.streams,
        "INFERENCE_NUM_THREADS": configuration.threads * configuration.streams,
        # Threads nailed to cores stand still where another process runs on that core.
        "ENABLE_CPU_PINNING": False,
    }
    return core.compile_model(model, "CPU", settings)


def _name(port: Any) -> str:
    return next(iter(sorted(port.get_names())), "?")


@functools.cache
def _core() -> Any:
    return _openvino().Core()


@functools.cache
def _openvino() -> Any:
    """OpenVINO, imported without its telemetry: a model that is optimised tells nobody."""
    telemetry = "openvino_telemetry"
    absent = telemetry not in sys.modules
    if absent:
        sys.modules[telemetry] = None  # type: ignore[assignment]  # importing it fails, and OpenVINO goes without
    try:
        with quiet():
            import openvino
            import openvino.tools.ovc
    finally:
        if absent:
            sys.modules.pop(telemetry, None)
    return openvino


OPENVINO = Backend(
    name="openvino",
    missing=_missing,
    version=_version,
    precisions=_precisions,
    build=_build,
    load=_load,
    interface=interface_of,
    streams=True,
)
