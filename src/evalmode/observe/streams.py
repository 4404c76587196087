"""Random streams, set, compared and put back: torch on every device in use, Python's and numpy's."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["StreamStates", "read_streams", "seed_streams", "stream_differences", "write_streams"]


@dataclass(frozen=True, slots=True)
class StreamStates:
    """The state of each stream by name (`torch`, `cuda:0`, `python`, `numpy`)."""

    torch: dict[str, torch.Tensor]
    python: tuple[Any, ...]
    numpy: dict[str, Any] | None


def read_streams() -> StreamStates:
    """The state of every stream, read without drawing from one."""
    module = _numpy_random()
    return StreamStates(
        torch={name: generator.get_state() for name, generator in _generators().items()},
        python=random.getstate(),
        numpy=module.get_state(legacy=False) if module else None,
    )


def write_streams(states: StreamStates) -> None:
    """Put every stream back into `states`."""
    generators = _generators()
    for name, state in states.torch.items():
        generators[name].set_state(state)
    random.setstate(states.python)
    module = _numpy_random()
    if states.numpy is not None and module:
        module.set_state(states.numpy)


def seed_streams(seed: int) -> None:
    """Start every stream anew from `seed`."""
    for generator in _generators().values():
        generator.manual_seed(seed)
    random.seed(seed)
    module = _numpy_random()
    if module:
        module.seed(seed % 2**32)


def stream_differences(first: StreamStates, second: StreamStates) -> tuple[str, ...]:
    """The names of the streams whose states differ.

    Example:
        >>> before = read_streams()
        >>> _ = random.random()
        >>> after = read_streams()
        >>> stream_differences(before, after)
        ('python',)
        >>> write_streams(before)
    """
    names = [name for name in first.torch if not torch.equal(first.torch[name], second.torch[name])]
    if first.python != second.python:
        names.append("python")
    if not _same_numpy(first.numpy, second.numpy):
        names.append("numpy")
    return tuple(names)


def _same_numpy(first: dict[str, Any] | None, second: dict[str, Any] | None) -> bool:
    if first is None or second is None:
        return True  # numpy was loaded in between: its stream is new, not moved
    return repr(_plain(first)) == repr(_plain(second))


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return state.tobytes() if hasattr(state, "tobytes") else state


def _generators() -> dict[str, torch.Generator]:
    found = {"torch": torch.default_generator}
    if torch.cuda.is_initialized():
        found |= {f"cuda:{index}": generator for index, generator in enumerate(torch.cuda.default_generators)}
    return found


def _numpy_random() -> Any:
    return sys.modules.get("numpy.random")
