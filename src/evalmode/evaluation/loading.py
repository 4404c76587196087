"""Groups of samples, read ahead while the model works on those before."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from evalmode.errors import TaskError
from evalmode.evaluation.groups import Group, Lost, Sample, grouped, largest_group
from evalmode.evaluation.identity import sample_digest
from evalmode.evaluation.loader_checks import broken_pipes_told
from evalmode.evaluation.runs import Runs
from evalmode.evaluation.source import Source

__all__ = ["Loading", "ahead"]

_AHEAD = 2  # groups read while one runs: enough to hide reading, few enough to bound memory
_LOOKED = 4096  # positions looked up at a time
_FAILURES = 10_000  # errors without a sample between them of a stream that nothing bounds: it will not end by itself
_PATIENCE = 1.0  # seconds that an end waits for a sample that is being read: a stream may block for ever
_END = object()


class Loading:
    """The groups of a source: those of its samples that are not `done` yet, up to `limit` samples.

    `chunk` samples are read at a time, by `workers` processes if there are any; `size` is how many make a group, None
    lets each sample's shape decide. Which chunk, worker or moment a sample was read in changes nothing about its group.

    With `digested` each sample carries a digest. What a stream gives that is done is shown to `again`.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: int | None,
        chunk: int,
        device: str,
        done: NDArray[np.int64] | None = None,
        limit: int | None = None,
        workers: int = 0,
        digested: bool = False,
    ) -> None:
        self.source, self.size, self.chunk, self.device = source, size, chunk, device
        self.limit, self.workers, self.digested = limit, workers, digested
        self.again: Callable[[Sample], None] | None = None
        self.done = Runs()
        if done is not None:
            self.done.add(done)

    @property
    def samples(self) -> int | None:
        """How many samples there are in all, done or not; None where the data cannot tell."""
        known = self.source.samples
        return known if self.limit is None else self.limit if known is None else min(known, self.limit)

    def __iter__(self) -> Iterator[Group | Lost]:
        if self.source.rows is not None:
            return self._arrays(self.source.rows)
        return self._grouped()

    def _grouped(self) -> Iterator[Group | Lost]:
        samples = self._streamed() if self.source.stream is not None else self.fetched(self._positions())
        samples = map(_with_digest, samples) if self.digested else samples
        groups = grouped(samples, self.source, self.size, self.device)
        return groups if self.workers else ahead(groups, _AHEAD)

    def _arrays(self, rows: Callable[[Sequence[int]], Any]) -> Iterator[Group | Lost]:
        size = self.size or largest_group(rows(range(1)), self.device)
        total = self.samples or 0
        left: Sequence[int] = range(total) if not self.done else self._left(np.arange(total)).tolist()
        for start in range(0, len(left), size):
            places = left[start : start + size]
            filled = places if len(places) == size else [places[row % len(places)] for row in range(size)]
            yield Group(rows(filled), tuple(places), size)

    def _positions(self) -> Iterator[int]:
        total = self.samples or 0
        for start in range(0, total, _LOOKED):
            yield from self._left(np.arange(start, min(start + _LOOKED, total))).tolist()

    def _is_done(self, position: int) -> bool:
        return bool(self.done) and bool(self.done.has(np.array([position]))[0])

    def _left(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the positions that are not done."""
        return positions[~self.done.has(positions)]

    def fetched(self, positions: Iterable[int]) -> Iterator[Sample | Lost]:
        """The samples at `positions`, done or not."""
        chunks = _chunks(positions, self.chunk)
        read = _Reading(self.source)
        if not self.workers:
            for places in chunks:
                yield from read[places]
            return
        dataset: Any = read  # it has what a map-style dataset needs
        order: Any = list(chunks)  # an entry is the positions of a chunk
        loader: DataLoader[Any] = DataLoader(
            dataset,
            sampler=order,
            batch_size=None,
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(0),
        )
        batches = iter(loader)
        while True:
            with broken_pipes_told():
                found = next(batches, None)
            if found is None:
                return
            yield from found

    def _streamed(self) -> Iterator[Sample | Lost]:
        if self.source.stream is None:
            return
        iterator = self.source.stream()
        position = 0
        failed = 0
        while self.limit is None or position < self.limit:
            try:
                value = next(iterator, _END)
            except Exception as error:
                failed += 1
                if self.samples is None and failed == _FAILURES:
                    raise _failing(self.source, error) from error
                if self.samples is not None and position >= self.samples:
                    return
                if self._is_done(position):
                    position += 1
                    continue
                yield Lost(position, f"it cannot be read: {type(error).__name__}: {error}", error)
                position += 1
                continue
            if value is _END:
                if failed:
                    yield Lost(-1, "the stream ended at its error: what follows it in the data was not read")
                return
            failed = 0
            if not self._is_done(position):
                yield Sample(position, value)
            elif self.again is not None:
                self.again(Sample(position, value))
            position += 1


def _with_digest(item: Sample | Lost) -> Sample | Lost:
    return dataclasses.replace(item, digest=sample_digest(item.value)) if isinstance(item, Sample) else item


class _Reading:
    """A dataset whose samples are asked for by the chunk; what it raises comes back in the sample's place."""

    def __init__(self, source: Source) -> None:
        self.dataset, self.fetch = source.dataset, source.fetch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, places: Sequence[int]) -> list[Sample | Lost]:
        together = getattr(self.dataset, "__getitems__", None)
        if together is not None:
            with contextlib.suppress(Exception):  # one by one below, to tell which sample it was
                found = together(list(places))
                if len(found) == len(places):
                    return [Sample(place, value) for place, value in zip(places, found, strict=True)]
        return [self._one(place) for place in places]

    def _one(self, place: int) -> Sample | Lost:
        try:
            return Sample(place, self.dataset[place])
        except Exception as error:  # noqa: BLE001 - a decoder of the user's may raise anything
            return Lost(place, f"it cannot be read: {type(error).__name__}: {error}", _carried(error))


def _failing(source: Source, error: Exception) -> TaskError:
    return TaskError(
        f"{source.kind} raised {_FAILURES:,} times running without giving a sample: {type(error).__name__}: {error}",
        expected="a stream that goes on after a bad sample, or ends",
        fix="end the stream where it cannot go on: raise StopIteration, or return from its generator",
    )


def _carried(error: Exception) -> Exception | None:
    """The error, where it can travel between processes."""
    return error if torch.utils.data.get_worker_info() is None else None


def _chunks(positions: Iterable[int], size: int) -> Iterator[list[int]]:
    iterator = iter(positions)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def ahead(items: Iterable[Any], depth: int) -> Iterator[Any]:
    """The items of `items`, at most `depth` of them read ahead by a thread of its own; its errors come in their place.

    Example:
        >>> list(ahead(range(3), 2))
        [0, 1, 2]
    """
    held: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: tuple[Any, BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                held.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            with torch.no_grad():
                for item in items:
                    if not put((item, None)):
                        return
        except BaseException as error:  # noqa: BLE001 - it is raised where the item was wanted
            put((_END, error))
        else:
            put((_END, None))

    thread = threading.Thread(target=read, name="evalmode-loading", daemon=True)
    thread.start()
    try:
        while True:
            item, error = held.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:  # also where the reader was interrupted or failed: the thread may then be in a call that never returns
        stopped.set()
        thread.join(_PATIENCE)
