"""Where a model runs, and what happens to memory there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from evalmode.errors import UsageError
from evalmode.observe.tree import map_tensors
from evalmode.observe.weights import require_weights

__all__ = ["give_memory_back", "model_device", "moved", "on_device", "out_of_memory", "to_host", "usable_device"]

_SHORT = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def model_device(module: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the CPU if it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def usable_device(device: str | torch.device) -> torch.device:
    """`device`, if tensors can be made there.

    Raises:
        UsageError: there is no such device on this machine.
    """
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise UsageError(
            f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}", expected=" or ".join(there)
        ) from error
    return chosen


def on_device(module: nn.Module, device: str | torch.device | None) -> tuple[nn.Module, torch.device]:
    """The model on the device: itself if it is there, else a moved copy.

    Raises:
        UsageError: there is no such device, or a weight has no numbers yet.
    """
    require_weights((*module.named_parameters(), *module.named_buffers()))
    here = model_device(module)
    if device is None:
        return module, here
    chosen = usable_device(device)
    if chosen.type == here.type and chosen.index in {None, here.index}:
        return module, here
    return copy.deepcopy(module).to(chosen), chosen


def moved(tree: Any, device: torch.device) -> Any:
    """The tree with its tensors on the device."""
    if isinstance(tree, torch.Tensor):
        return tree if tree.device == device else tree.to(device, non_blocking=True)
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), tree)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, or its cause, says that memory ran out.

    Example:
        >>> out_of_memory(MemoryError()), out_of_memory(ValueError("no"))
        (True, False)
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(seen, RuntimeError) and any(words in str(seen).lower() for words in _SHORT):
            return True
        seen = seen.__cause__
    return False


def give_memory_back(device: torch.device) -> None:
    """Let the device use again what nothing holds any more."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def to_host(outputs: Any) -> tuple[Any, Callable[[], object] | None]:
    """The outputs in the host's memory, and what waits for them where they are still on their way."""
    if isinstance(outputs, torch.Tensor) and outputs.device.type == "cpu":
        return outputs, None
    devices: set[str] = set()

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        devices.add(tensor.device.type)
        return tensor.to("cpu", non_blocking=True)

    host = map_tensors(copied, outputs)
    if "cuda" not in devices:
        return host, None
    event = torch.cuda.Event()
    event.record()
    return host, event.synchronize
