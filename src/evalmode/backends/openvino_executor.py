"""Executions of a compiled OpenVINO model: requests, their tensors, and how bytes get in and out of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from evalmode.backends.backend import Chunk, Executor
from evalmode.backends.configuration import Configuration
from evalmode.backends.folder import Folder
from evalmode.backends.interface import Interface
from evalmode.backends.packing import TensorRecord, pack
from evalmode.backends.refusal import refusal
from evalmode.backends.surroundings import undisturbed
from evalmode.errors import BackendError

__all__ = ["OpenVinoExecutor"]

_IN_PLACE_INPUT = 1 << 18  # bytes: below, copying takes less time than handing the memory over
_IN_PLACE_OUTPUT = 1 << 20
_INT32 = torch.iinfo(torch.int32)


@final
class _Request:
    """One execution in flight: its own small tensors, and those of a caller for the while of a call."""

    def __init__(self, openvino: Any, compiled: Any, interface: Interface, *, in_place: bool) -> None:
        self._tensor = openvino.Tensor
        self._request = compiled.create_infer_request()
        self._inputs: list[tuple[int, int, Tensor | None]] = []
        for position, (index, record) in enumerate(zip(interface.used, interface.graph_inputs(), strict=True)):
            large = _bytes(record) >= _IN_PLACE_INPUT
            own = None if large else torch.from_numpy(self._request.get_input_tensor(position).data)
            self._inputs.append((position, index, own))
        self._outputs: list[tuple[int, TensorRecord, Tensor | None]] = []
        for position, record in enumerate(interface.computed):
            large = in_place and _bytes(record) >= _IN_PLACE_OUTPUT
            own = None if large else torch.from_numpy(self._request.get_output_tensor(position).data)
            if own is not None and tuple(own.shape) != record.shape:
                raise BackendError(
                    f"openvino: an output has the shape {list(own.shape)}", expected=str(list(record.shape))
                )
            self._outputs.append((position, record, own))
        self._written: list[Tensor | None] = []

    def fill(self, chunk: Chunk) -> None:
        """Hand over the inputs of an execution."""
        for position, index, own in self._inputs:
            tensor = chunk[index].detach()
            if tensor.dtype is torch.int64 and tensor.numel():
                _refuse_large(tensor, index)
            if own is not None:
                own.copy_(tensor)
            else:
                self._request.set_input_tensor(position, self._tensor(tensor.numpy(), shared_memory=True))
        self._written = []
        for position, record, own in self._outputs:
            memory = None if own is not None else torch.empty(record.shape, dtype=record.element_type, device="cpu")
            if memory is not None:
                self._request.set_output_tensor(position, self._tensor(memory.numpy(), shared_memory=True))
            self._written.append(memory)

    def start(self) -> None:
        """Begin the execution."""
        self._request.start_async()

    def infer(self) -> None:
        """Begin the execution and wait for its end."""
        self._request.infer()

    def wait(self) -> None:
        """Wait for the end of the execution."""
        self._request.wait()

    def outputs(self) -> Chunk:
        """What was computed, in memory that this request forgets."""
        found = []
        for (_, record, own), memory in zip(self._outputs, self._written, strict=True):
            output = memory if memory is not None else own.clone() if own is not None else torch.empty(0, device="cpu")
            dtype = record.element_type
            found.append(output if output.dtype is dtype else output.to(dtype))
        self._written = []
        return tuple(found)


@final
class OpenVinoExecutor(Executor):
    """A compiled model for one execution shape; as many requests as executions are in flight.

    `example`, where given, is run when the executor is made: what cannot run is refused then.
    """

    def __init__(
        self,
        openvino: Any,
        compiled: Any,
        folder: Folder,
        configuration: Configuration,
        interface: Interface,
        constants: Chunk,
        example: Chunk | None,
    ) -> None:
        self.configuration = configuration
        self._openvino = openvino
        self._compiled = compiled
        self._folder = folder
        self._interface = interface
        self._constants = constants
        self._idle: deque[_Request] = deque()
        # An output that is an input unchanged is not written into memory that is handed over (OpenVINO 2026.4).
        large = any(_bytes(record) >= _IN_PLACE_OUTPUT for record in interface.computed)
        self._in_place = large and not _passes_through(compiled)
        if example is not None:
            self.run([example])

    def run(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """The outputs of each chunk, in order.

        Raises:
            BackendError: OpenVINO refuses the inputs, an integer needs more than 32 bits, or it is closed.
        """
        if len(chunks) == 1 or self.configuration.streams == 1:
            return [undisturbed("cpu", self._one, chunk) for chunk in chunks]
        return undisturbed("cpu", self._overlapping, chunks)

    def _one(self, chunk: Chunk) -> Chunk:
        request = self._request()
        try:
            request.fill(chunk)
            request.infer()
            computed = request.outputs()
        except BackendError:
            raise
        except Exception as error:  # the request is not used again
            raise refusal("openvino", error, "run") from error
        self._give_back(request)
        return self._interface.assembled(chunk, computed, self._constants)

    def _overlapping(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        found: list[Chunk] = []
        flying: deque[_Request] = deque()
        try:
            for chunk in chunks:
                if len(flying) == self.configuration.streams:
                    found.append(self._finished(flying.popleft()))
                request = self._request()
                request.fill(chunk)
                request.start()
                flying.append(request)
            while flying:
                found.append(self._finished(flying.popleft()))
        except Exception as error:
            for request in flying:
                request.wait()  # they still read memory of the caller's
            raise refusal("openvino", error, "run") from error
        return [
            self._interface.assembled(chunk, computed, self._constants)
            for chunk, computed in zip(chunks, found, strict=True)
        ]

    def _finished(self, request: _Request) -> Chunk:
        request.wait()
        computed = request.outputs()
        self._give_back(request)
        return computed

    def _request(self) -> _Request:
        try:
            return self._idle.pop()
        except IndexError:
            compiled = self._compiled  # read once: another thread may close it
            if compiled is None:
                raise BackendError(f"{self.configuration} is closed") from None
            return _Request(self._openvino, compiled, self._interface, in_place=self._in_place)

    def _give_back(self, request: _Request) -> None:
        self._idle.append(request)
        if self._compiled is None:  # it was closed meanwhile
            self._idle.clear()

    def payload(self) -> bytes:
        """The intermediate representation, its weights, and the interface."""
        return pack(
            {
                **self._interface.parts(self._constants),
                "model": (self._folder.path / "model.xml").read_bytes(),
                "weights": (self._folder.path / "model.bin").read_bytes(),
            }
        )

    def close(self) -> None:
        """Let go of the compiled model."""
        self._compiled = None
        self._idle.clear()


def _passes_through(compiled: Any) -> bool:
    """Whether an output of what is really executed is an input, unchanged."""
    return any(
        result.input_value(0).get_node().get_rt_info()["layerType"].astype(str) in {"Input", "Parameter"}
        for result in compiled.get_runtime_model().get_results()
    )


def _bytes(record: TensorRecord) -> int:
    count = record.element_type.itemsize
    for length in record.shape:
        count *= length
    return count


def _refuse_large(tensor: Tensor, index: int) -> None:
    smallest, largest = torch.aminmax(tensor)
    if int(smallest) < _INT32.min or int(largest) > _INT32.max:
        raise BackendError(
            f"input {index} holds an integer that needs more than 32 bits, which OpenVINO would cut off",
            expected=f"{_INT32.min} to {_INT32.max}",
            fix="optimise with backends=['onnxruntime', 'inductor']",
        )
