"""What a built graph takes and gives, and how its outputs become the program's: plain data, part of a payload."""

from __future__ import annotations

import math

import msgspec
from torch import Tensor

from evalmode.backends.chunk import Chunk
from evalmode.backends.packing import TensorRecord, first_part, tensor_bytes, tensor_from
from evalmode.errors import BackendError

__all__ = ["Interface", "Wiring", "interface_of"]


class Wiring(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where each output comes from: `("computed", i)`, `("input", i)` or `("constant", i)`.

    Example:
        >>> Wiring((("computed", 0), ("input", 1), ("computed", 0))).computed
        1
    """

    sources: tuple[tuple[str, int], ...]

    @property
    def computed(self) -> int:
        """How many distinct outputs the graph computes."""
        return len({index for kind, index in self.sources if kind == "computed"})

    @property
    def straight(self) -> bool:
        """Whether the computed outputs are the outputs."""
        return self.sources == tuple(("computed", index) for index in range(len(self.sources)))

    def first_positions(self) -> tuple[int, ...]:
        """The first output that shows each computed one, in the order in which the graph gives them."""
        first: dict[int, int] = {}
        for position, (kind, index) in enumerate(self.sources):
            if kind == "computed":
                first.setdefault(index, position)
        return tuple(first[index] for index in sorted(first))


class Interface(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The inputs of the program, what the graph computes of them, its constant outputs, and the wiring of all.

    `used` are the inputs that the graph takes, in its own order. `writes` says that it was tried to have outputs
    written into given memory, and gave the same bits.
    """

    inputs: tuple[TensorRecord, ...]
    used: tuple[int, ...]
    computed: tuple[TensorRecord, ...]
    constants: tuple[TensorRecord, ...]
    wiring: Wiring
    writes: bool = False

    @classmethod
    def of(cls, inputs: Chunk, outputs: Chunk, constants: Chunk, wiring: Wiring, used: tuple[int, ...]) -> Interface:
        """The interface of a program that answers `inputs` with `outputs`."""
        computed = tuple(TensorRecord.of(outputs[position]) for position in wiring.first_positions())
        return cls(
            tuple(TensorRecord.of(tensor) for tensor in inputs),
            used,
            computed,
            tuple(TensorRecord.of(tensor) for tensor in constants),
            wiring,
        )

    def graph_inputs(self) -> tuple[TensorRecord, ...]:
        """The inputs that the graph takes, in its own order."""
        return tuple(self.inputs[index] for index in self.used)

    def assembled(self, inputs: Chunk, computed: Chunk, constants: Chunk) -> Chunk:
        """The program's outputs; inputs, constants and repetitions are copied, so that nothing shares memory."""
        if self.wiring.straight:
            return computed
        found: list[Tensor] = []
        for position, (kind, index) in enumerate(self.wiring.sources):
            if kind == "computed":
                again = (kind, index) in self.wiring.sources[:position]
                found.append(computed[index].clone() if again else computed[index])
            else:
                found.append((inputs if kind == "input" else constants)[index].clone())
        return tuple(found)

    def parts(self, constants: Chunk) -> dict[str, bytes]:
        """The interface and its constants as parts of a payload."""
        return {
            "interface": msgspec.json.encode(self),
            "constants": b"".join(tensor_bytes(constant) for constant in constants),
        }

    @classmethod
    def from_parts(cls, parts: dict[str, bytes], outputs: int) -> tuple[Interface, Chunk]:
        """The interface and its constants again.

        Raises:
            BackendError: the parts are not what `parts` gives, or not those of a program with so many outputs.
        """
        found = _decoded(parts["interface"])
        found.require_sound(outputs)
        return found, _constants(found.constants, parts["constants"])

    def tensors(self, outputs: int) -> tuple[tuple[TensorRecord, ...], tuple[TensorRecord, ...]]:
        """The inputs of the program and its outputs, of which there are so many.

        Raises:
            BackendError: the outputs are others.
        """
        self.require_sound(outputs)
        places = {"computed": self.computed, "input": self.inputs, "constant": self.constants}
        return self.inputs, tuple(places[kind][index] for kind, index in self.wiring.sources)

    def require_sound(self, outputs: int) -> None:
        """Nothing where every source exists and there are so many outputs.

        Raises:
            BackendError: it is not so.
        """
        limits = {"computed": len(self.computed), "input": len(self.inputs), "constant": len(self.constants)}
        sound = all(0 <= index < limits.get(kind, 0) for kind, index in self.wiring.sources)
        if not sound or self.wiring.computed != len(self.computed):
            raise BackendError("the payload's outputs come from places that are not there")
        if len(set(self.used)) != len(self.used) or not all(0 <= index < len(self.inputs) for index in self.used):
            raise BackendError("the payload uses inputs that are not there")
        if len(self.wiring.sources) != outputs:
            raise BackendError(f"the payload has {len(self.wiring.sources)} outputs", expected=str(outputs))
        for record in (*self.inputs, *self.computed, *self.constants):
            if any(length < 0 for length in record.shape):
                raise BackendError("a tensor of the payload has an axis of negative length")


def interface_of(payload: bytes) -> Interface:
    """The interface that a payload states, without the rest of it.

    Raises:
        BackendError: it states none.
    """
    return _decoded(first_part(payload, "interface"))


def _decoded(data: bytes) -> Interface:
    try:
        return msgspec.json.decode(data, type=Interface)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BackendError(f"the payload's interface is wrong: {error}") from error


def _constants(records: tuple[TensorRecord, ...], body: bytes) -> Chunk:
    found = []
    position = 0
    for record in records:
        size = math.prod(record.shape) * record.element_type.itemsize
        found.append(tensor_from(record, body[position : position + size]))
        position += size
    if position != len(body):
        raise BackendError("the payload's constants have bytes behind their end")
    return tuple(found)
