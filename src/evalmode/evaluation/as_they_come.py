"""Batches run as a DataLoader gives them, for `exact=False`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from evalmode.errors import BatchError, EvalmodeError
from evalmode.evaluation.batches import batch_length, batches_from
from evalmode.evaluation.groups import Group, Lost
from evalmode.evaluation.loader_checks import broken_pipes_told

__all__ = ["AsTheyCome"]

_END = object()


class AsTheyCome:
    """Batches as a DataLoader gives them: nothing is grouped, nothing is filled up."""

    def __init__(self, data: Any, batch_size: int, limit: int | None) -> None:
        self.batches = batches_from(data, batch_size, limit)
        self.data, self.limit = data, limit
        self.samples = self.batches.samples

    def __iter__(self) -> Iterator[Group | Lost]:
        first = 0
        for batch in self._read():
            size = batch_length(batch) or 0
            count = size if self.limit is None else min(size, self.limit - first)
            yield Group(batch, tuple(range(first, first + count)), size)
            first += count
            if self.limit is not None and first >= self.limit:
                return

    def _read(self) -> Iterator[Any]:
        batches = iter(self.batches)
        for number in itertools.count():
            try:
                with broken_pipes_told() if getattr(self.data, "num_workers", 0) else contextlib.nullcontext():
                    batch = next(batches, _END)
            except EvalmodeError:
                raise
            except Exception as error:
                fix = "mend it; without exact=False the sample is named, and on_bad_sample='skip' leaves it out"
                raise BatchError(
                    f"batch {number} of the data (from 0) cannot be read: {type(error).__name__}: {error}",
                    expected="batches that can be read: with exact=False none of a batch's samples can be left out",
                    fix=fix,
                ) from error
            if batch is _END:
                return
            yield batch
