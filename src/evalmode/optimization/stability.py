"""At which sizes a sample keeps its bits whatever is beside it, and which sizes agree bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evalmode.backends.backend import Chunk
from evalmode.optimization.probes import REGULAR
from evalmode.optimization.samples import Run, Samples, ran, require_rows, rows_of

__all__ = ["SizeRecord", "Stability", "StabilityReport"]

_TELLING = 4  # orders that are run however long they take


@dataclasses.dataclass(frozen=True, slots=True)
class SizeRecord:
    """What was found at one size: `stable`, or in `reason` where bits changed. `probes` counts the samples run."""

    size: int
    stable: bool
    reason: str
    probes: int


@dataclasses.dataclass(frozen=True, slots=True)
class StabilityReport:
    """The stable sizes, parted into classes that agree bit for bit on every output of every sample.

    `classes` holds the largest class first; `unstable` the other sizes.
    """

    classes: tuple[tuple[int, ...], ...]
    unstable: tuple[SizeRecord, ...]
    samples: int
    probes: int

    def class_of(self, size: int) -> tuple[int, ...]:
        """The sizes that give the same bits as `size`, itself among them; empty where it is not stable."""
        return next((members for members in self.classes if size in members), ())


class Stability:
    """Measures sizes one by one, so that a search can add another later.

    At each size every sample is run beside others, at other positions, in batches that are filled up by repetition,
    beside edges (NaN among them) and without, in the orders of several seeds. NaN equals NaN, 0.0 and -0.0 differ.
    Past `seconds` at one size only what tells most is still run: again, shuffled, and filled up.

    Example:
        >>> from evalmode.optimization.probes import probe_samples
        >>> (samples,) = probe_samples((torch.randn(4, 8),), (0,), ("x",))
        >>> stability = Stability(samples, (0,))
        >>> run = lambda chunks: [(chunk[0] * 2,) for chunk in chunks]
        >>> [stability.add(size, run).stable for size in (1, 4)], stability.report().classes
        ([True, True], ((1, 4),))
    """

    def __init__(
        self,
        samples: Samples,
        output_axes: Sequence[int | None],
        *,
        names: Sequence[str] = (),
        seeds: int = 3,
        seconds: float = math.inf,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.samples = samples
        self._axes = tuple(output_axes)
        self._names = tuple(names) or tuple(f"output {place}" for place in range(len(self._axes)))
        self._seeds = seeds
        self._seconds = seconds
        self._clock = clock
        self._records: dict[int, SizeRecord] = {}
        self._marks: dict[int, tuple[tuple[bytes, ...], ...]] = {}

    def add(self, size: int, run: Run) -> SizeRecord:
        """Measure `size`, run by `run`; what was measured of that size before is forgotten."""
        marks: dict[int, tuple[bytes, ...]] = {}
        probes = 0
        self._marks.pop(size, None)
        begin = self._clock()
        for number, (what, order) in enumerate(self._orders(size)):
            if number >= _TELLING and self._clock() - begin > self._seconds:
                break
            for positions, outputs in ran(run, self.samples, order, size):
                probes += size
                found = self._marks_of(outputs, size)
                for place, position in enumerate(positions):
                    changed = self._changed(marks.setdefault(position, found[place]), found[place])
                    if changed:
                        reason = f"{changed} of a sample ({self.samples.kinds[position]}) has other bits {what}"
                        self._records[size] = SizeRecord(size, False, f"{reason}, position {place} of {size}", probes)
                        return self._records[size]
                shared = self._shared_change(next(iter(marks.values())), found[0])
                if shared:
                    self._records[size] = SizeRecord(
                        size, False, f"{shared} belongs to no sample, and has other bits {what}", probes
                    )
                    return self._records[size]
        self._marks[size] = tuple(marks[position] for position in range(len(self.samples)))
        self._records[size] = SizeRecord(size, True, "", probes)
        return self._records[size]

    def report(self) -> StabilityReport:
        """What was measured so far."""
        classes: dict[tuple[tuple[bytes, ...], ...], list[int]] = {}
        for size in sorted(self._marks):
            classes.setdefault(self._marks[size], []).append(size)
        ordered = sorted((tuple(members) for members in classes.values()), key=lambda members: (-len(members), members))
        return StabilityReport(
            tuple(ordered),
            tuple(record for _, record in sorted(self._records.items()) if not record.stable),
            len(self.samples),
            sum(record.probes for record in self._records.values()),
        )

    def _orders(self, size: int) -> list[tuple[str, list[int]]]:
        """The orders of samples, each with what it changes; the most telling first."""
        count = len(self.samples)
        everything = list(range(count))
        ordinary = [place for place in everything if self.samples.kinds[place] in REGULAR] or everything
        orders = [("beside the same ones", everything), ("when it runs once more", everything[:size])]
        if size == 1:
            return [*orders, ("when it runs once more", everything)]
        shuffled = []
        for seed in range(self._seeds):
            generator = torch.Generator().manual_seed(seed)
            shuffled.append(("beside others", torch.randperm(count, generator=generator).tolist()))
        # An order shorter than a batch is filled up by repetition, as the last batch of a caller is.
        filled = [("in a batch filled up by repetition", [place]) for place in ordinary[:3]]
        filled += [
            ("in a batch filled up by repetition", ordinary[:length])
            for length in sorted({2, size // 2, size - 1})
            if 1 < length < size
        ]
        orders += [*shuffled[:1], *filled[:1], ("at another position", everything[::-1])]
        orders += [("without edges beside it", ordinary), *filled[1:], *shuffled[1:]]
        orders.append(("when it runs once more", everything))
        return orders

    def _marks_of(self, outputs: Chunk, size: int) -> list[tuple[bytes, ...]]:
        """The bits of each sample's outputs, and of those that belong to none, as digests."""
        columns = []
        for output, axis in zip(outputs, self._axes, strict=True):
            require_rows(output, axis, size)
            rows = _digests(rows_of(output, axis))
            columns.append(rows * size if axis is None else rows)
        return list(zip(*columns, strict=True))

    def _changed(self, known: tuple[bytes, ...], found: tuple[bytes, ...]) -> str:
        """The name of the first output that differs, if any."""
        for name, axis, one, other in zip(self._names, self._axes, known, found, strict=True):
            if one != other and axis is not None:
                return name
        return ""

    def _shared_change(self, known: tuple[bytes, ...], found: tuple[bytes, ...]) -> str:
        """The name of the first output that belongs to no sample and differs between executions, if any."""
        for name, axis, one, other in zip(self._names, self._axes, known, found, strict=True):
            if one != other and axis is None:
                return name
        return ""


def _digests(rows: Tensor) -> list[bytes]:
    """A digest of the bits of each row, every NaN counted as the same one."""
    if rows.is_floating_point():
        rows = torch.where(rows.isnan(), torch.full((), torch.nan, dtype=rows.dtype), rows)
    plain = rows.contiguous().view(torch.uint8) if rows.numel() else torch.empty(len(rows), 0, dtype=torch.uint8)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in plain.numpy()]
