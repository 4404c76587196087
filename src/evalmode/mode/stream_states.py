"""The state of every random stream of the process, read without drawing, and written back."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["StreamStates", "cuda_generators", "numpy_random", "read_streams", "write_streams"]


@dataclass(frozen=True, slots=True)
class StreamStates:
    """The state of each stream, as its own getter gives it; None for streams that are not there."""

    torch_cpu: torch.Tensor
    python: tuple[Any, ...]
    numpy: dict[str, Any] | None
    cuda: tuple[torch.Tensor, ...] | None


def read_streams() -> StreamStates:
    """The state of torch's streams (on the CPU, and on every CUDA device once CUDA is up), Python's and numpy's.

    Example:
        >>> before = read_streams()
        >>> first = torch.rand(1)
        >>> write_streams(before)
        >>> torch.rand(1).equal(first)
        True
    """
    numpy = numpy_random()
    cuda = cuda_generators()
    return StreamStates(
        torch_cpu=torch.default_generator.get_state(),
        python=random.getstate(),
        numpy=numpy.get_state(legacy=False) if numpy else None,
        cuda=tuple(generator.get_state() for generator in cuda) if cuda is not None else None,
    )


def write_streams(states: StreamStates) -> None:
    """Put every stream of `states` back; a stream that came up since is left as it is."""
    torch.default_generator.set_state(states.torch_cpu)
    random.setstate(states.python)
    if states.numpy is not None:
        numpy_random().set_state(states.numpy)
    if states.cuda is not None:
        for generator, state in zip(cuda_generators() or (), states.cuda, strict=True):
            generator.set_state(state)


def numpy_random() -> Any:
    """numpy's legacy random module, if the process has loaded it."""
    return sys.modules.get("numpy.random")


def cuda_generators() -> tuple[torch.Generator, ...] | None:
    """The generator of each CUDA device, once CUDA is initialised."""
    return tuple(torch.cuda.default_generators) if torch.cuda.is_initialized() else None
