"""What an evaluation has kept so far: the samples that were read, in memory and in the journal, and those left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalmode.certificate import BadSampleRecord
from evalmode.evaluation.chunk import Chunk
from evalmode.evaluation.journal import Journal
from evalmode.evaluation.kept import Kept, Part
from evalmode.evaluation.reading import Reading
from evalmode.evaluation.samples import Samples

__all__ = ["Keeping"]

_CHUNK_SAMPLES = 4096
_CHUNK_SECONDS = 1.0  # a kill loses at most about this much work
_LISTED = 100  # bad samples that are kept by name; all are counted

Values = NDArray[Any]
Read = tuple[NDArray[np.int64], Values, Reading, Mapping[str, Values], Values | None]


class _Waiting:
    """What is in no chunk yet. The chunk is made once: what is interrupted is taken up again with the same one."""

    def __init__(self) -> None:
        self.parts: list[Read] = []
        self.bad: dict[int, BadSampleRecord] = {}
        self.samples = 0
        self.chunk: tuple[Chunk, Part] | None = None

    def made(self, told: Callable[[], bytes]) -> tuple[Chunk, Part]:
        """Its chunk, and what is held of it."""
        if self.chunk is None:
            chunk = _chunk(self.parts, self.bad, told())
            self.chunk = chunk, Part.of(chunk)
        return self.chunk


class Keeping:
    """Readings become chunks of some thousand samples; a chunk is on the disk before the next one is begun.

    Nothing else of a group is kept: neither inputs nor outputs. A sample that was left out is not tried again. `tell`
    gives what else a chunk carries; `told` is what the last one in the journal did.
    """

    def __init__(self, journal: Journal | None, tell: Callable[[], bytes] = bytes) -> None:
        self.journal, self.tell, self.told = journal, tell, b""
        self.bad: dict[int, BadSampleRecord] = {}
        self._kept = Kept()
        self._waiting = _Waiting()
        self._flushed = time.monotonic()
        for chunk in journal.chunks() if journal is not None else ():
            self._kept.add(Part.of(chunk))
            self.bad.update(zip(chunk.bad_positions, chunk.bad, strict=True))
            self.told = chunk.told
        self._in_chunks = len(self._kept)

    @property
    def samples(self) -> int:
        """How many samples were read; those left out are not among them."""
        return self._in_chunks + self._waiting.samples

    def places(self) -> Sequence[int] | NDArray[np.int64]:
        """The positions of the samples in the order of the data."""
        self.flush()
        return range(len(self._kept)) if self._kept.gapless() else np.sort(self._kept.positions())

    def done(self) -> NDArray[np.int64]:
        """The positions that the journal answers for: of samples that were read, and of those left out."""
        return np.concatenate([self._kept.positions(), np.fromiter(self.bad, np.int64, len(self.bad))])

    def add(
        self,
        positions: NDArray[np.int64],
        ids: Values,
        reading: Reading,
        columns: Mapping[str, Values],
        digests: Values | None = None,
    ) -> None:
        """Keep the samples of a reading."""
        waiting = self._waiting
        waiting.parts.append((positions, ids, reading, columns, digests))
        waiting.samples += len(positions)
        waited = self.journal is not None and time.monotonic() - self._flushed > _CHUNK_SECONDS
        if waiting.samples >= _CHUNK_SAMPLES or waited:
            self.flush()

    def lose(self, position: int, name: str, reason: str) -> None:
        """Count a sample that is left out."""
        if position not in self.bad:
            record = BadSampleRecord(id=name, reason=reason)
            self._waiting.bad[position] = record
            self.bad[position] = record

    def flush(self) -> None:
        """Make a chunk of what has come since the last one, and record it. Interrupted anywhere, it can be repeated."""
        waiting = self._waiting
        if waiting.parts or waiting.bad:
            chunk, part = waiting.made(self.tell)
            if self.journal is not None:
                self.journal.append(chunk)
            self._kept.add(part)
            self.bad.update(waiting.bad)  # where Ctrl-C came between the two
            self._waiting, self._in_chunks = _Waiting(), len(self._kept)
        self._flushed = time.monotonic()

    def recorded(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], Samples]:
        """Which of `positions` the journal holds, and what it holds of them, in the order of the data."""
        found = Kept()
        for chunk in self.journal.chunks() if self.journal is not None else ():
            if np.isin(chunk.positions, positions).any():
                found.add(Part.of(chunk))
        places = np.sort(found.positions())
        wanted = np.isin(places, positions)
        return places[wanted], found.samples().where(wanted)

    def digests(self) -> dict[int, int]:
        """The digests of the samples in the journal, by position in the order of the data."""
        found: dict[int, int] = {}
        for chunk in self.journal.chunks() if self.journal is not None else ():
            if chunk.digests is not None:
                found.update(zip(chunk.positions.tolist(), chunk.digests.tolist(), strict=True))
        return dict(sorted(found.items()))

    def result(self) -> Samples:
        """All samples in the order of the data; nothing is kept here afterwards."""
        self.flush()
        return self._kept.samples()

    def listed(self) -> tuple[BadSampleRecord, ...]:
        """The first samples that were left out, in the order of the data."""
        return tuple(self.bad[position] for position in sorted(self.bad)[:_LISTED])


def _chunk(parts: list[Read], bad: Mapping[int, BadSampleRecord], told: bytes) -> Chunk:
    positions, ids, readings, columns, digests = zip(*parts, strict=True) if parts else ((), (), (), (), ())
    return Chunk(
        np.concatenate(positions) if positions else np.zeros(0, np.int64),
        _stacked(ids) if ids else np.zeros(0, np.int64),
        {
            name: _stacked([reading.rows[name] for reading in readings])
            for name in (readings[0].rows if readings else {})
        },
        _together([reading.target for reading in readings]),
        _together([reading.prediction for reading in readings]),
        _together([reading.scores for reading in readings]),
        {name: _stacked([column[name] for column in columns]) for name in _in_every(columns)},
        tuple(bad.values()),
        tuple(bad),
        _together([reading.confidence for reading in readings]),
        _together(list(digests)),
        told,
    )


def _in_every(columns: Sequence[Mapping[str, Values]]) -> list[str]:
    """The columns that all parts have."""
    return [name for name in (columns[0] if columns else {}) if all(name in column for column in columns)]


def _stacked(parts: list[Values] | tuple[Values, ...]) -> Values:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _together(parts: list[Values | None]) -> Values | None:
    there = [part for part in parts if part is not None]
    if not there or len(there) < len(parts) or len({part.shape[1:] for part in there}) > 1:
        return None
    return _stacked(there)
