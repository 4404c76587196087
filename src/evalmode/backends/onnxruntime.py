"""onnxruntime: the exported graph as ONNX, run by ONNX Runtime on the processor.

What it does
------------
Translates the exported graph to ONNX once, with a free batch axis where the model has one, fixes the axis to the
execution's batch size when a session is made, and runs it with a thread pool of its own. Inputs are read and outputs
written in place.

Why it matters
--------------
Small models and recurrent ones often run faster than anywhere else, a build takes seconds, and the payload is data:
ONNX executes nothing.

Example
-------
    import evalmode

    fast = evalmode.optimize(model, batch, backends=["onnxruntime"])

Use instead
-----------
`openvino` for convolutions and bf16, `inductor` for a model that does not export.

Fix and its safety
------------------
Where an operator has no ONNX form the message names it: rewrite that line of the model, or use another back end.

Limits
------
fp32 only, on the processor only; bf16 tensors and complex numbers as inputs or outputs are refused. An output whose
shape depends on values is refused. Needs the packages onnx, onnxscript and onnxruntime to build, the last alone to
load. The threads of a plan spin for some milliseconds after a call, and keep to a core each where a plan takes all of
them: the defaults of ONNX Runtime. The next call starts at once, and other work on those cores waits.

Source
------
https://onnxruntime.ai/docs/performance/tune-performance/threading.html
https://docs.pytorch.org/docs/stable/onnx_export.html
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalmode.backends.backend import Backend, Chunk, Executor
from evalmode.backends.configuration import Configuration
from evalmode.backends.folder import Folder
from evalmode.backends.interface import Interface, interface_of
from evalmode.backends.memory import forget_last_export
from evalmode.backends.onnx_file import MODEL, WEIGHTS, exporter_missing, onnx_file
from evalmode.backends.packing import pack, unpack
from evalmode.backends.portable import portable, reference_outputs
from evalmode.backends.program import Program
from evalmode.backends.quiet import quiet
from evalmode.backends.refusal import EXTRA, refusal, require
from evalmode.backends.surroundings import undisturbed
from evalmode.backends.threads import each_pinned
from evalmode.errors import BackendError
from evalmode.observe.tree import same_bits

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["ONNXRUNTIME"]

_ALIGNMENT = 64  # bytes
_PARTS = ("interface", "constants", "model", "weights")
_TYPES = {
    torch.float64: "double", torch.float32: "float", torch.float16: "float16", torch.int64: "int64",
    torch.int32: "int32", torch.int16: "int16", torch.int8: "int8", torch.uint8: "uint8", torch.bool: "bool",
}  # fmt: skip


def _missing() -> str | None:
    return None if find_spec("onnxruntime") else EXTRA


def _version() -> str:
    return f"onnxruntime {version('onnxruntime')}" if find_spec("onnxruntime") else "onnxruntime"


def _build(program: Program, configuration: Configuration) -> Executor:
    require("onnxruntime", _missing() or exporter_missing())
    inputs = program.inputs_at(configuration.batch)
    reference = reference_outputs(program, configuration.batch)
    _refuse_types((*inputs, *reference))
    try:
        with quiet(), torch.inference_mode(mode=False), torch.no_grad():
            graph = portable(program, configuration.batch)
            folder, used = onnx_file(graph.exported)
    except Exception as error:
        raise refusal("onnxruntime", error, "convert") from error
    finally:
        forget_last_export()
    interface = Interface.of(inputs, reference, graph.constants, graph.wiring, used)
    executor = _OnnxExecutor(folder, configuration, interface, graph.constants)
    (outputs,) = executor.run([inputs])  # what cannot run is refused now, and later calls cost no more than any other
    executor.try_writing(inputs, outputs)
    return executor


def _load(payload: bytes, configuration: Configuration, outputs: int) -> Executor:
    require("onnxruntime", _missing())
    parts = unpack(payload, _PARTS)
    interface, constants = Interface.from_parts(parts, outputs)
    folder = Folder()
    folder.write(MODEL, parts["model"])
    if parts["weights"]:
        folder.write(WEIGHTS, parts["weights"])
    return _OnnxExecutor(folder, configuration, interface, constants)


def _refuse_types(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        if tensor.dtype not in _TYPES:
            raise BackendError(
                f"onnxruntime cannot exchange {tensor.dtype} with torch", expected=", ".join(map(str, _TYPES))
            )


@final
class _OnnxExecutor(Executor):
    """A session for one execution shape. Sessions may be run from several threads at once."""

    def __init__(self, folder: Folder, configuration: Configuration, interface: Interface, constants: Chunk) -> None:
        self.configuration = configuration
        self._folder = folder
        self._interface = interface
        self._constants = constants
        self._session: onnxruntime.InferenceSession | None = None
        with quiet():
            session = _session(folder, configuration, interface)
        self._names = tuple(value.name for value in session.get_inputs())
        self._feeds = tuple(zip(self._names, interface.used, strict=False))
        self._straight = interface.wiring.straight
        self._outputs = [value.name for value in session.get_outputs()]
        self._shapes = [record.shape for record in interface.computed]
        self._dtypes = [record.element_type for record in interface.computed]
        types = zip(session.get_outputs(), self._dtypes, strict=False)
        self._writable = self._straight and all(value.type == f"tensor({_TYPES.get(dtype)})" for value, dtype in types)
        self._writes = self._writable and interface.writes
        if (len(self._names), len(self._outputs)) != (len(interface.used), len(interface.computed)):
            raise BackendError("onnxruntime: the file has other inputs or outputs than the payload says")
        self._session = session

    def run(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """The outputs of each chunk, in order.

        Raises:
            BackendError: ONNX Runtime refuses the inputs, an output's shape depends on values, or it is closed.
        """
        configuration = self.configuration
        if configuration.streams == 1 or len(chunks) == 1:  # the session has threads of its own
            if self._straight and not torch.is_inference_mode_enabled():  # nothing is computed with torch
                return [self._one(chunk) for chunk in chunks]
            return [undisturbed("cpu", self._one, chunk) for chunk in chunks]
        return each_pinned(1, configuration.streams, self._one, chunks)

    def run_into(self, chunk: Chunk, outputs: Chunk) -> bool:
        """Run one chunk and write its outputs into `outputs`, where nothing is left to do to them afterwards.

        Raises:
            BackendError: ONNX Runtime refuses the inputs, or it is closed.
        """
        wanted = zip(outputs, self._dtypes, self._shapes, strict=True)
        if not self._writes or any(place.dtype is not dtype or place.shape != shape for place, dtype, shape in wanted):
            return False
        # Kernels may round otherwise where memory is not aligned as torch's own allocator does.
        direct = [place.is_contiguous() and place.data_ptr() % _ALIGNMENT == 0 for place in outputs]
        if not any(direct):
            return False
        written = [
            place if fits else torch.empty_like(place, memory_format=torch.contiguous_format)
            for place, fits in zip(outputs, direct, strict=True)
        ]
        session = self._open_session()
        try:
            binding = session.io_binding()
            for name, index in self._feeds:
                _bind(binding.bind_input, name, chunk[index])
            for name, tensor in zip(self._outputs, written, strict=True):
                _bind(binding.bind_output, name, tensor)
            session.run_with_iobinding(binding)
        except Exception as error:
            raise refusal("onnxruntime", error, "run") from error
        for place, tensor in zip(outputs, written, strict=True):
            if place is not tensor:
                place.copy_(tensor)
        return True

    def try_writing(self, inputs: Chunk, outputs: Chunk) -> None:
        """Write outputs into given memory from now on only if that gives the bits of `outputs`, which `run` gave."""
        self._writes = self._writable
        if self._writes:
            places = tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in outputs)
            self._writes = self.run_into(inputs, places) and all(map(same_bits, places, outputs))
        self._interface = msgspec.structs.replace(self._interface, writes=self._writes)

    def _open_session(self) -> onnxruntime.InferenceSession:
        session = self._session  # read once: another thread may close it
        if session is None:
            raise BackendError(f"{self.configuration} is closed")
        return session

    def _one(self, chunk: Chunk) -> Chunk:
        session = self._open_session()
        feed = {name: _array(chunk[index]) for name, index in self._feeds}
        try:
            arrays = session.run(self._outputs, feed)
        except Exception as error:
            raise refusal("onnxruntime", error, "run") from error
        computed = tuple(
            self._received(array, dtype, shape)
            for array, dtype, shape in zip(arrays, self._dtypes, self._shapes, strict=True)
        )
        return computed if self._straight else self._interface.assembled(chunk, computed, self._constants)

    def _received(self, array: object, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        # The memory that ONNX Runtime has written, not a copy.
        tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else torch.as_tensor(array)
        if tensor.shape != shape:
            raise BackendError(
                f"onnxruntime: an output has the shape {list(tensor.shape)}",
                expected=f"{list(shape)}, as when it was built",
            )
        return tensor if tensor.dtype is dtype else tensor.to(dtype)

    def payload(self) -> bytes:
        """The ONNX file, its weights, and the interface."""
        weights = self._folder.path / WEIGHTS
        return pack(
            {
                **self._interface.parts(self._constants),
                "model": (self._folder.path / MODEL).read_bytes(),
                "weights": weights.read_bytes() if weights.exists() else b"",
            }
        )

    def close(self) -> None:
        """Let go of the session and its threads."""
        self._session = None


def _array(tensor: Tensor) -> NDArray[Any]:
    """The same memory; an inference tensor, or one that needs gradients, has no numpy form of its own."""
    plain = tensor.detach() if tensor.requires_grad or tensor.is_inference() else tensor
    array: NDArray[Any] = plain.numpy()
    return array


def _bind(bind: Callable[..., None], name: str, tensor: Tensor) -> None:
    array = _array(tensor)
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _session(folder: Folder, configuration: Configuration, interface: Interface) -> onnxruntime.InferenceSession:
    import onnxruntime

    path = os.fspath(folder.path / MODEL)
    # The free axes are named in the file, and a session is the cheapest way to read it without the onnx package.
    free: dict[str, int] = {}
    for value, record in zip(_opened(path, _options()).get_inputs(), interface.graph_inputs(), strict=True):
        free.update(
            {name: length for name, length in zip(value.shape, record.shape, strict=True) if isinstance(name, str)}
        )
    options = _options()
    options.intra_op_num_threads = configuration.threads
    if places := _places(configuration.threads):
        options.add_session_config_entry("session.intra_op_thread_affinities", places)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    for name, length in free.items():
        options.add_free_dimension_override_by_name(name, length)
    return _opened(path, options)


def _places(threads: int) -> str:
    """The processor of each thread beside the caller's, counted from 1, where a plan takes all of them.

    Left to itself ONNX Runtime does the same; told a number of threads, it lets them wander. Empty where nobody knows.
    """
    here = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return ";".join(str(processor + 1) for processor in here[1:]) if 1 < threads == len(here) else ""


def _options() -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.use_deterministic_compute = True
    options.enable_mem_pattern = False  # planning holds activations twice, and saves no time that could be measured
    options.log_severity_level = 4
    return options


def _opened(path: str, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise refusal("onnxruntime", error, "load") from error


ONNXRUNTIME = Backend(
    name="onnxruntime",
    missing=_missing,
    version=_version,
    precisions=lambda device: ("fp32",) if device == "cpu" else (),
    build=_build,
    load=_load,
    interface=interface_of,
    streams=True,
)
