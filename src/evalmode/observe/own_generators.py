"""Generators that a model holds itself: torch's, numpy's and Python's, kept and put back like the global streams."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["OwnGenerator", "own_generator"]


@dataclass(frozen=True, slots=True)
class OwnGenerator:
    """A generator at a module, and the state it had."""

    module: str
    name: str
    generator: Any
    state: Any

    @property
    def path(self) -> str:
        """The full name: module path and attribute."""
        return ".".join(part for part in (self.module, self.name) if part)

    def current(self) -> object:
        """The state it has now, to be compared."""
        return _comparable(_read(self.generator))

    def moved(self) -> bool:
        """Whether the generator has drawn, or was seeded, since."""
        return bool(self.current() != _comparable(self.state))

    def put_back(self) -> None:
        """Give the generator its state back."""
        if self.moved():
            _write(self.generator, self.state)


def own_generator(module: str, name: str, value: Any) -> OwnGenerator | None:
    """`value` with its state if it is a generator, else None.

    Example:
        >>> held = own_generator("", "noise", random.Random(0))
        >>> _ = held.generator.random()
        >>> held.moved()
        True
    """
    numpy = sys.modules.get("numpy.random")
    kinds: tuple[type, ...] = (torch.Generator, random.Random)
    if numpy is not None:
        kinds += (numpy.Generator, numpy.RandomState, numpy.BitGenerator)
    if not isinstance(value, kinds) or isinstance(value, random.SystemRandom):
        return None
    return OwnGenerator(module, name, value, _read(value))


def _comparable(state: Any) -> Any:
    """A state that `==` can compare: arrays and tensors become bytes."""
    if isinstance(state, dict):
        return {key: _comparable(value) for key, value in state.items()}
    if isinstance(state, torch.Tensor):
        return state.cpu().numpy().tobytes()
    return state.tobytes() if hasattr(state, "tobytes") else state


def _read(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    inner = _bit_generator(generator)
    return inner.state if inner is not None else generator.get_state(legacy=False)


def _write(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif _bit_generator(generator) is not None:
        _bit_generator(generator).state = state
    else:
        generator.set_state(state)


def _bit_generator(generator: Any) -> Any:
    """numpy's bit generator inside; None for a RandomState, which keeps more than that."""
    return getattr(generator, "bit_generator", generator if hasattr(generator, "random_raw") else None)
