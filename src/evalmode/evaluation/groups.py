"""Samples put together into groups of one size and one shape, as the model runs them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from evalmode.errors import TaskError
from evalmode.evaluation.loader_checks import PADDING_FIX
from evalmode.evaluation.source import Source
from evalmode.observe.tree import describe, leaves

__all__ = ["Group", "Lost", "Sample", "collated", "grouped", "largest_group", "shape_of"]

LARGEST = 1024
_INPUT_BYTES = {"cpu": 4 << 20, "cuda": 128 << 20}
_TOKENS = {"cpu": 8, "cuda": 32}


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample, its place in the data, and what tells it from another one where that is kept."""

    position: int
    value: Any = field(repr=False)
    digest: int | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """A sample that could not be read or put into a batch, and why."""

    position: int
    reason: str
    cause: BaseException | None = field(repr=False, default=None)


@dataclass(frozen=True, slots=True)
class Group:
    """A batch of `size` rows: the samples at `positions`, in that order, and then the same ones again as filling.

    `digests` are those of the samples, empty where none are kept.
    """

    batch: Any = field(repr=False)
    positions: tuple[int, ...]
    size: int
    digests: tuple[int, ...] = field(repr=False, default=())

    def __len__(self) -> int:
        return len(self.positions)


def shape_of(sample: Any) -> tuple[Any, ...]:
    """What makes samples alike: where their tensors are, of which dtype and shape.

    Example:
        >>> shape_of((torch.zeros(2), 3)) == shape_of((torch.ones(2), 4)) != shape_of((torch.zeros(3), 3))
        True
    """
    if isinstance(sample, torch.Tensor):
        return (sample.dtype, sample.shape)
    if isinstance(sample, tuple) and all(isinstance(part, torch.Tensor | int | float) for part in sample):
        return tuple((part.dtype, part.shape) if isinstance(part, torch.Tensor) else type(part) for part in sample)
    return tuple(
        (path, leaf.dtype, tuple(leaf.shape)) if isinstance(leaf, torch.Tensor | np.ndarray) else (path, type(leaf))
        for path, leaf in leaves(sample)
    )


def largest_group(sample: Any, device: str) -> int:
    """How many samples like this one run together: a power of two that depends on the sample alone.

    Anything that depends on what else is in the data, on a clock, or on free memory would give other bits another time.
    Sequences of tokens run few at a time, since each length is a group of its own.

    Example:
        >>> largest_group(torch.zeros(3, 224, 224), "cpu"), largest_group(torch.zeros(4), "cpu")
        (4, 1024)
    """
    arrays = [leaf for _, leaf in leaves(sample) if isinstance(leaf, torch.Tensor | np.ndarray)]
    if any(leaf.ndim == 1 and len(leaf) > 1 and not _is_floating(leaf) for leaf in arrays):
        return _TOKENS.get(device, _TOKENS["cuda"])
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in arrays)
    room = _INPUT_BYTES.get(device, _INPUT_BYTES["cuda"]) // max(size, 1)
    return min(LARGEST, 1 << max(room.bit_length() - 1, 0))


def _is_floating(leaf: torch.Tensor | np.ndarray[Any, Any]) -> bool:
    return leaf.is_floating_point() if isinstance(leaf, torch.Tensor) else leaf.dtype.kind == "f"


def grouped(samples: Iterable[Sample | Lost], source: Source, size: int | None, device: str) -> Iterator[Group | Lost]:
    """Groups of samples of one shape, each full as soon as it is given; the last of each shape is filled up.

    `size` is how many samples a group holds; None lets `largest_group` decide.
    """
    waiting: dict[tuple[Any, ...], tuple[int, list[Sample]]] = {}
    check = _Shapes(source)
    for sample in samples:
        if isinstance(sample, Lost):
            yield sample
            continue
        check.alone(sample)
        shape = shape_of(sample.value)
        if shape not in waiting:
            waiting[shape] = (size or largest_group(sample.value, device), [])
        wanted, held = waiting[shape]
        held.append(sample)
        if len(held) == wanted:
            waiting[shape] = (wanted, [])
            yield from check(collated(held, wanted, source))
    for wanted, held in waiting.values():
        if held:
            yield from check(collated(held, wanted, source))


def collated(held: list[Sample], size: int, source: Source) -> list[Group | Lost]:
    """The samples as one group; where they cannot be put together, each alone, and those that fail even then."""
    try:
        return [_made(held, size, source)]
    except TaskError:
        raise
    except Exception:
        found: list[Group | Lost] = []
        for sample in held:
            try:
                found.append(_made([sample], size, source))
            except TaskError:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                reason = f"it cannot be put into a batch: {type(error).__name__}: {error}"
                found.append(Lost(sample.position, reason, error))
        if len(held) > 1 and not any(isinstance(group, Lost) for group in found):
            raise
        return found


def _made(held: list[Sample], size: int, source: Source) -> Group:
    filled = [held[row % len(held)].value for row in range(size)]
    digests = tuple(sample.digest for sample in held if sample.digest is not None)
    return Group(source.collate(filled), tuple(sample.position for sample in held), size, digests)


class _Shapes:
    """Refuses batches that differ in shape where a collate makes them of samples whose own shape cannot be seen."""

    def __init__(self, source: Source) -> None:
        self.watched, self.collate = source.own_collate, source.collate
        self.first: dict[str, Any] | None = None

    def __call__(self, groups: list[Group | Lost]) -> list[Group | Lost]:
        if self.watched:
            for group in groups:
                if isinstance(group, Group):
                    self._look(group)
        return groups

    def alone(self, sample: Sample) -> None:
        """Look at a sample without tensors, as text, collated alone: that is the shape it has of its own."""
        if not self.watched or any(isinstance(leaf, torch.Tensor | np.ndarray) for _, leaf in leaves(sample.value)):
            return
        try:
            batch = self.collate([sample.value])
        except Exception:  # noqa: BLE001 - the user's own code; it is told with the group
            return
        self._look(Group(batch, (sample.position,), 1))

    def _look(self, group: Group) -> None:
        shapes = {
            path: tuple(leaf.shape)
            for path, leaf in leaves(group.batch)
            if isinstance(leaf, torch.Tensor) and leaf.ndim and len(leaf) == group.size
        }
        if self.first is None:
            self.first = shapes
        for path, shape in shapes.items():
            known = self.first.get(path, shape)
            if shape[1:] != known[1:]:
                raise TaskError(
                    f"collate_fn gives batches of different shapes ({list(known)} and {list(shape)}) "
                    f"for the {describe(group.batch)}: it pads samples to their companions",
                    expected="one shape per sample, whatever it is loaded with",
                    fix=PADDING_FIX,
                )
