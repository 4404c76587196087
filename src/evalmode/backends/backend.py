"""The contract of a back end: a small tuple of functions, and the executor that they give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evalmode.backends.chunk import Chunk
from evalmode.backends.configuration import Configuration
from evalmode.backends.interface import Interface
from evalmode.backends.program import Program

__all__ = ["Backend", "Chunk", "Executor"]


class Executor(ABC):
    """A program built by one back end for one execution shape.

    Subclasses are final. An executor may be called from several threads at once. Its outputs are fresh: no later call
    writes into them, and no two calls share memory. They are ordinary tensors without a graph, gradients on or not.
    Threads and streams are those of its configuration, whatever the calling thread has set, and the calling thread's
    own settings are the same afterwards.
    """

    configuration: Configuration

    @abstractmethod
    def run(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """The outputs of each chunk of inputs, in order; each input contiguous and of the execution's shape."""

    def run_into(self, chunk: Chunk, outputs: Chunk) -> bool:
        """Run one chunk and write its outputs into `outputs`, each contiguous; False where that cannot be done.

        Nothing has been run then: `run` gives the outputs.
        """
        return False

    def payload(self) -> bytes | None:
        """What `Backend.load` makes the same executor of, in another process; None if this one does not serialise."""
        return None

    def close(self) -> None:  # noqa: B027 - most hold nothing that Python does not give back
        """Give back what it holds; it is not run again."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One back end.

    `missing()` is None where it can be used, else how to install it. `version()` names what must be the same, or be
    tested again, where a payload is loaded. `precisions(device)` are those the processor has instructions for, the
    exactest first; empty where the back end does not run there. `build` makes an executor. `load(payload,
    configuration, outputs)` makes it again from a payload, where `outputs` is the number of outputs; None where the
    back end does not serialise. `interface` reads the tensors that a payload states, before it is loaded. With
    `native_code`, loading a payload runs machine code that the payload brings.
    `needs_export` tells that programs without a graph are refused.

    Raises, from `build` and `load`:
        BackendError: the back end refuses the program or the payload; the message names the operator where it can.
        MissingExtraError: the back end is not installed.
    """

    name: str
    missing: Callable[[], str | None]
    version: Callable[[], str]
    precisions: Callable[[str], tuple[str, ...]]
    build: Callable[[Program, Configuration], Executor]
    load: Callable[[bytes, Configuration, int], Executor] | None = None
    interface: Callable[[bytes], Interface] | None = None
    native_code: bool = False
    needs_export: bool = True
    streams: bool = False
