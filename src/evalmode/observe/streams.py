"""Random streams, started anew and compared: torch on every device in use, Python's and numpy's."""

from __future__ import annotations

import random
from typing import Any

import torch

from evalmode.mode.stream_states import StreamStates, cuda_generators, numpy_random, read_streams, write_streams

__all__ = ["StreamStates", "read_streams", "seed_streams", "stream_differences", "write_streams"]


def seed_streams(seed: int) -> None:
    """Start every stream anew from `seed`."""
    for generator in (torch.default_generator, *(cuda_generators() or ())):
        generator.manual_seed(seed)
    random.seed(seed)
    if numpy_random():
        numpy_random().seed(seed % 2**32)


def stream_differences(first: StreamStates, second: StreamStates) -> tuple[str, ...]:
    """The names (`torch`, `cuda:0`, `python`, `numpy`) of the streams whose states differ.

    A stream that came up in between is new, not moved.

    Example:
        >>> before = read_streams()
        >>> _ = random.random()
        >>> after = read_streams()
        >>> stream_differences(before, after)
        ('python',)
        >>> write_streams(before)
    """
    names = [] if torch.equal(first.torch_cpu, second.torch_cpu) else ["torch"]
    pairs = zip(first.cuda or (), second.cuda or (), strict=False)
    names += [f"cuda:{index}" for index, (one, other) in enumerate(pairs) if not torch.equal(one, other)]
    if first.python != second.python:
        names.append("python")
    if not _same_numpy(first.numpy, second.numpy):
        names.append("numpy")
    return tuple(names)


def _same_numpy(first: dict[str, Any] | None, second: dict[str, Any] | None) -> bool:
    return first is None or second is None or repr(_plain(first)) == repr(_plain(second))


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return state.tobytes() if hasattr(state, "tobytes") else state
