"""An execution that torch itself runs: threads pinned, surroundings kept out, outputs that nobody else holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from evalmode.backends.backend import Chunk, Executor
from evalmode.backends.configuration import Configuration
from evalmode.backends.surroundings import Standing, standing_now, undisturbed, with_standing
from evalmode.backends.threads import each_pinned
from evalmode.errors import BackendError

__all__ = ["TorchExecutor", "fresh", "place_of", "standing_for"]


@final
class TorchExecutor(Executor):
    """`function` maps the inputs of one execution to its outputs, which are copied where somebody else holds them.

    `payload` gives the bytes of which the back end makes the same executor, if it can. `keeps` are the places in memory
    of what the model holds: an output there is copied.
    """

    def __init__(
        self,
        configuration: Configuration,
        function: Callable[[Chunk], Sequence[Tensor]],
        payload: Callable[[], bytes] | None = None,
        keeps: frozenset[int] = frozenset(),
    ) -> None:
        self.configuration = configuration
        self._function: Callable[[Chunk], Sequence[Tensor]] | None = function
        self._payload = payload
        self._device = torch.device(configuration.device).type
        self._keeps = keeps - {0}
        self._standing = standing_for(configuration)

    def run(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """The outputs of each chunk, in order.

        Raises:
            BackendError: the executor is closed.
        """
        if self._device != "cpu":  # kernels are queued in order, and the processor's threads take no part
            return [self._one(chunk) for chunk in chunks]
        return each_pinned(self.configuration.threads, self.configuration.streams, self._one, chunks)

    def _one(self, chunk: Chunk) -> Chunk:
        return with_standing(self._standing, self._kept_out, chunk)

    def _kept_out(self, chunk: Chunk) -> Chunk:
        return undisturbed(self._device, self._fresh, chunk)

    def _fresh(self, chunk: Chunk) -> Chunk:
        function = self._function  # read once: another thread may close it
        if function is None:
            raise BackendError(f"{self.configuration} is closed")
        return fresh(function(chunk), chunk, self._keeps)

    def payload(self) -> bytes | None:
        """The bytes of which the same executor can be made; None where the back end does not serialise."""
        return None if self._payload is None else self._payload()

    def close(self) -> None:
        """Let go of the model."""
        self._function = self._payload = None


def standing_for(configuration: Configuration) -> Standing:
    """The settings of this moment; on CUDA, TF32 is allowed or forbidden as the configuration has it."""
    if not configuration.device.startswith("cuda"):
        return standing_now()
    return standing_now().at_tf32(configuration.precision == "tf32")


def fresh(outputs: Sequence[Tensor], inputs: Sequence[Tensor] = (), keeps: frozenset[int] = frozenset()) -> Chunk:
    """The outputs, copied where somebody else holds their memory (the caller, the model, or another output), as that of
    the `inputs` and of the places that the model `keeps`, and where they belong to inference mode.

    Example:
        >>> x = torch.zeros(3)
        >>> y = torch.ones(3)
        >>> [output.data_ptr() == own.data_ptr() for output, own in zip(fresh((x[1:], y + 1)), (x[1:], y))]
        [False, False]
    """
    found: list[Tensor] = []
    held = keeps.union([place_of(tensor) for tensor in inputs]) - {0}
    for output in outputs:
        again = any(output is other for other in found) or place_of(output) in held
        own = not (again or output.requires_grad or output.is_inference() or _held_elsewhere(output))
        found.append(output if own else output.detach().clone())
    return tuple(found)


def place_of(tensor: Tensor) -> int:
    """Where a tensor's memory lies; what shares memory has one place. 0 where it has none, as a sparse one."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


def _holders(tensor: Tensor) -> int:
    storage = tensor.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata))  # noqa: SLF001 - torch asks the same for its CUDA graphs


_ALONE = _holders(torch.empty(1))  # the tensor, and the handle through which it is asked


def _held_elsewhere(output: Tensor) -> bool:
    return _holders(output) > _ALONE
