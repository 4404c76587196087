"""Batches of test data, in order, without a draw from training's random streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    default_collate,
)

from evalmode.errors import TaskError, UsageError
from evalmode.evaluation.given_columns import is_texts, with_arrays
from evalmode.mode.streams import StreamHold, hold_streams, release_streams
from evalmode.observe.tree import leaves

__all__ = ["Batches", "batch_length", "batches_from", "loaded_apart"]

_END = object()


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches that can be iterated again and again.

    `samples` is how many samples they hold, None where that is not known before they have been read; `notes` says what
    a reader of the figures should know about the data's order and completeness.
    """

    start: Callable[[], Iterator[Any]] = field(repr=False)
    samples: int | None = None
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        return self.start()


def batches_from(data: object, batch_size: int = 64, limit: int | None = None) -> Batches:
    """Batches from a DataLoader (as it is), a dataset, or an `(inputs, targets)` pair of tensors or arrays.

    Every sample comes once and in order; the last batch may be smaller. Loading draws from evaluation's own random
    streams, and generators of a DataLoader are put back. `limit` keeps the first samples; a DataLoader stops after the
    batch that reaches it, which the evaluation loop then cuts.

    Raises:
        TaskError: `data` is none of these, is empty, or its parts differ in length.
        UsageError: `batch_size` or `limit` is below 1.

    Example:
        >>> import torch
        >>> [len(inputs) for inputs, target in batches_from((torch.zeros(5, 2), torch.zeros(5)), 2)]
        [2, 2, 1]
    """
    _refuse_below_one("batch_size", batch_size)
    _refuse_below_one("limit", 1 if limit is None else limit)
    if isinstance(data, Batches):
        return data
    data = with_arrays(data)
    if isinstance(data, DataLoader):
        return _of_loader(data, limit)
    if isinstance(data, IterableDataset):
        return _of_loader(DataLoader(data, batch_size=batch_size), limit)
    if isinstance(data, tuple | list) and len(data) == 2 and all(map(_is_array_like, data)):
        return _of_pair(data[0], data[1], batch_size, limit)
    if _is_dataset(data):
        return _of_dataset(data, batch_size, limit)
    raise TaskError(
        f"test data of type {type(data).__name__}",
        expected="a DataLoader, a dataset with __len__ and __getitem__, or a pair (inputs, targets) of tensors",
        fix="return torch.utils.data.DataLoader(data, batch_size=64)   # batch_size=None where data holds batches",
    )


def _refuse_below_one(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} is {value!r}", expected="a whole number of at least 1", fix=f"{name}=64")


def _is_array_like(part: object) -> bool:
    """A tensor or array with samples along axis 0, or a mapping of them."""
    if isinstance(part, Mapping):
        return bool(part) and all(_is_array_like(value) for value in part.values())
    return isinstance(part, torch.Tensor | np.ndarray) and part.ndim > 0


def _is_dataset(data: object) -> bool:
    if isinstance(data, str | bytes | Mapping | tuple | list | torch.Tensor | np.ndarray | torch.nn.Module | type):
        return False
    return isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__"))


def _leaves(part: Any) -> list[Any]:
    return [leaf for value in part.values() for leaf in _leaves(value)] if isinstance(part, Mapping) else [part]


def _cut(part: Any, start: int, stop: int) -> Any:
    if isinstance(part, Mapping):
        return {name: _cut(value, start, stop) for name, value in part.items()}
    cut = part[start:stop]
    return cut.tolist() if is_texts(part) else torch.as_tensor(cut)


def _of_pair(inputs: Any, targets: Any, batch_size: int, limit: int | None) -> Batches:
    lengths = [len(leaf) for leaf in (*_leaves(inputs), *_leaves(targets))]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise TaskError(
            f"the pair (inputs, targets) has {' and '.join(map(str, lengths))} samples",
            expected="the same number in each, at least one",
            fix="look at what test_data() returns",
        )
    total = lengths[0] if limit is None else min(limit, lengths[0])

    def start() -> Iterator[Any]:
        for first in range(0, total, batch_size):
            last = min(first + batch_size, total)
            yield _cut(inputs, first, last), _cut(targets, first, last)

    return Batches(start, total)


def _of_dataset(data: Any, batch_size: int, limit: int | None) -> Batches:
    if not len(data):
        raise _empty(data)
    total = len(data) if limit is None else min(limit, len(data))

    def fetch(first: int, last: int) -> Any:
        if type(data) is TensorDataset:
            return data[first:last]
        samples = [data[index] for index in range(first, last)]
        try:
            return default_collate(samples)
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise TaskError(
                f"samples {first} to {last - 1} of the {type(data).__name__} cannot be made one batch: {error}",
                expected="samples of one structure and shape",
                fix="return torch.utils.data.DataLoader(dataset, batch_size=..., collate_fn=...) from test_data()",
            ) from error

    def start() -> Iterator[Any]:
        apart = _Apart([])
        for first in range(0, total, batch_size):
            yield apart(partial(fetch, first, min(first + batch_size, total)))

    return Batches(start, total)


def _of_loader(loader: DataLoader[Any], limit: int | None) -> Batches:
    samples = _samples_of(loader)
    if samples == 0:
        raise _empty(loader.dataset)
    notes = []
    if samples is not None and loader.drop_last and loader.batch_size and (left_out := samples % loader.batch_size):
        samples -= left_out
        notes.append(f"the DataLoader has drop_last=True: the last {left_out} samples are left out")
    if isinstance(loader.sampler, RandomSampler):
        notes.append("the DataLoader shuffles: samples are numbered in the order in which it gives them")
    if isinstance(loader.sampler, DistributedSampler):
        notes.append("the DataLoader has a DistributedSampler: one process's share, padded by repeating samples")

    def start() -> Iterator[Any]:
        apart = _Apart(_generators_of(loader))
        iterator = apart(lambda: iter(loader))
        taken = 0
        while limit is None or taken < limit:
            batch = apart(lambda: next(iterator, _END))
            if batch is _END:
                return
            yield batch
            taken += batch_length(batch) or 0

    known = samples if samples is None or limit is None else min(limit, samples)
    return Batches(start, known, tuple(notes))


def batch_length(batch: Any) -> int | None:
    """The number of samples in a batch: the length of its first tensor or array; None if it holds none."""
    for _, leaf in leaves(batch):
        if isinstance(leaf, torch.Tensor | np.ndarray) and leaf.ndim > 0:
            return len(leaf)
    return None


def loaded_apart(step: Callable[[], Iterable[Any]]) -> list[Any]:
    """What `step` gives, read on evaluation's own random streams.

    Example:
        >>> loaded_apart(lambda: range(2))
        [0, 1]
    """
    found: list[Any] = _Apart([])(lambda: list(step()))
    return found


def _samples_of(loader: DataLoader[Any]) -> int | None:
    """How many samples the loader goes through, where its sampler can tell."""
    if isinstance(loader.dataset, IterableDataset) or type(loader.batch_sampler) is not BatchSampler:
        return None
    return len(loader.sampler) if isinstance(loader.sampler, Sized) else None


def _generators_of(loader: DataLoader[Any]) -> list[torch.Generator]:
    owners = (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    found = {id(generator): generator for owner in owners if (generator := getattr(owner, "generator", None))}
    return [generator for generator in found.values() if isinstance(generator, torch.Generator)]


class _Apart:
    """Runs steps of loading on random streams of their own; a loader's generators go on from step to step."""

    def __init__(self, generators: list[torch.Generator]) -> None:
        self.generators = generators
        self.states = [generator.get_state() for generator in generators]

    def __call__(self, step: Callable[[], Any]) -> Any:
        hold = StreamHold()
        before = [generator.get_state() for generator in self.generators]
        try:
            hold_streams(hold)
            self._set(self.states)
            return step()
        finally:
            self.states = [generator.get_state() for generator in self.generators]
            self._set(before)
            release_streams(hold)

    def _set(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)


def _empty(data: object) -> TaskError:
    return TaskError(
        f"the test data is empty ({type(data).__name__} of length 0)",
        expected="at least one sample",
        fix="look at what test_data() returns",
    )
