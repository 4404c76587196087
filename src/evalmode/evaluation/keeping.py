"""What an evaluation has kept so far: chunks of samples, in memory and in the journal, and running figures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.certificate import BadSampleRecord
from evalmode.evaluation.chunk import Chunk, joined
from evalmode.evaluation.journal import Journal
from evalmode.evaluation.reading import Reading
from evalmode.evaluation.samples import Samples

__all__ = ["CONFIDENCE", "Keeping"]

CONFIDENCE = "confidence"
_CHUNK_SAMPLES = 4096
_CHUNK_SECONDS = 1.0  # a kill loses at most about this much work
_LISTED = 100  # bad samples that are kept by name; all are counted


class Keeping:
    """Readings become chunks of some thousand samples; a chunk is on the disk before the next one is begun.

    Nothing else of a group is kept: neither inputs nor outputs.
    """

    def __init__(self, journal: Journal | None) -> None:
        self.journal = journal
        self.chunks: list[Chunk] = list(journal.chunks()) if journal is not None else []
        self.samples = sum(chunk.samples for chunk in self.chunks)
        self.bad: dict[str, BadSampleRecord] = {record.id: record for chunk in self.chunks for record in chunk.bad}
        self._known = frozenset(self.bad)
        self._positions: list[NDArray[np.int64]] = []
        self._ids: list[NDArray[Any]] = []
        self._readings: list[Reading] = []
        self._columns: list[Mapping[str, NDArray[Any]]] = []
        self._new_bad: list[BadSampleRecord] = []
        self._waiting = 0
        self._flushed = time.monotonic()

    @property
    def done(self) -> NDArray[np.int64]:
        """The positions of the samples that the journal holds."""
        return np.concatenate([chunk.positions for chunk in self.chunks]) if self.chunks else np.zeros(0, np.int64)

    def add(
        self,
        positions: NDArray[np.int64],
        ids: NDArray[Any],
        reading: Reading,
        columns: Mapping[str, NDArray[Any]],
    ) -> None:
        """Keep the samples of a reading."""
        self._positions.append(positions)
        self._ids.append(ids)
        self._readings.append(reading)
        self._columns.append(columns)
        self._waiting += len(positions)
        self.samples += len(positions)
        waited = self.journal is not None and time.monotonic() - self._flushed > _CHUNK_SECONDS
        if self._waiting >= _CHUNK_SAMPLES or waited:
            self.flush()

    def lose(self, sample: str, reason: str) -> None:
        """Count a sample that is left out."""
        if sample not in self.bad:
            self.bad[sample] = BadSampleRecord(id=sample, reason=reason)
            self._new_bad.append(self.bad[sample])

    def clear(self) -> None:
        """Forget what is not in a chunk yet."""
        self.samples -= self._waiting
        self._positions, self._ids, self._readings, self._columns = [], [], [], []
        self._waiting = 0

    def flush(self) -> None:
        """Make a chunk of what has come since the last one, and record it."""
        if not self._positions and not self._new_bad:
            return
        chunk = self._chunk()
        if self.journal is not None:
            self.journal.append(chunk)
        self.chunks.append(chunk)
        self._new_bad = []
        self.samples += self._waiting
        self.clear()
        self._flushed = time.monotonic()

    def result(self) -> Samples:
        """All samples in the order of the data."""
        self.flush()
        return joined(self.chunks)

    def listed(self) -> tuple[BadSampleRecord, ...]:
        """The first samples that were left out."""
        return tuple(self.bad.values())[:_LISTED]

    def _chunk(self) -> Chunk:
        readings = self._readings
        columns = {name: _stacked([column[name] for column in self._columns]) for name in (self._columns or [{}])[0]}
        confidence = _together([reading.confidence for reading in readings])
        if confidence is not None:
            columns[CONFIDENCE] = confidence
        return Chunk(
            np.concatenate(self._positions) if self._positions else np.zeros(0, np.int64),
            _stacked(self._ids) if self._ids else np.zeros(0, np.int64),
            {
                name: _stacked([reading.rows[name] for reading in readings])
                for name in (readings[0].rows if readings else {})
            },
            _together([reading.target for reading in readings]),
            _together([reading.prediction for reading in readings]),
            _together([reading.scores for reading in readings]),
            columns,
            tuple(self._new_bad),
        )


def _stacked(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _together(parts: list[NDArray[Any] | None]) -> NDArray[Any] | None:
    there = [part for part in parts if part is not None]
    if not there or len(there) < len(parts) or len({part.shape[1:] for part in there}) > 1:
        return None
    return _stacked(there)
