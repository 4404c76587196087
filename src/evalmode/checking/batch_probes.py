"""The probes of `batch-independent`: the same samples beside other companions, at other positions, in other sizes."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from evalmode.checking.batch_outputs import Difference, Reader, Seats
from evalmode.checking.companions import beside, companion_kinds
from evalmode.checking.rounding import nudging
from evalmode.checking.subject import Outputs, Subject
from evalmode.errors import BatchError, ModelRunError, UsageError
from evalmode.observe.batching import BatchAxis
from evalmode.observe.tree import same_bits

__all__ = ["Comparison", "Nature", "Probe", "Probes"]

_DEPENDENCE = 1e-10
_SHRINKS = 1e-5
_LARGE = 1e-3
_FAR = 10
_REFUSABLE = ("extreme companions", "NaN companions", "shifted companions")


class Nature(enum.Enum):
    """Why bits differ. A `CHOICE` (argmax, top-k) that falls otherwise in fp64 than in fp32 is counted apart."""

    DEPENDENCE = "dependence"
    ROUNDING = "rounding"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True)
class Probe:
    """A changed batch, and where in it samples of the reference batch lie."""

    kind: str
    code: str
    batch: Any
    size: int
    reference_positions: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a probe gave for the samples that it shares with the reference.

    `narrow` says why a difference is no rounding where the model cannot be run in fp64; it is empty where fp64 decided.
    """

    probe: Probe
    found: Difference
    narrow: str = ""


class Probes:
    """A reference batch of a fixed size, its outputs, and how other batches compare with it.

    Raises:
        ModelRunError: the model does not run at this size.
    """

    def __init__(self, subject: Subject, size: int) -> None:
        if isinstance(subject.axis, str):
            raise UsageError(f"the batch cannot be divided into samples: {subject.axis}")
        self.subject = subject
        self.axis: BatchAxis = subject.axis
        self.size = size
        self.order = tuple(position % self.axis.size for position in range(size))
        whole = self.order == tuple(range(self.axis.size))
        self.batch = subject.batch if whole else subject.samples(self.order)
        self.reference = self._given() or subject.run(self.batch)
        self.count = 1
        self.failed: dict[int, ModelRunError] = {}
        self.sizes: dict[int, Seats] = {}  # the samples that each size shares with the reference
        self._wide: Outputs | None = None
        self.other_size, other = self._another_size()
        self.reader = Reader(self.reference, size, other, self.other_size)
        self._keep(size, self.reference)
        if self.other_size is not None and other is not None:
            self._keep(self.other_size, other)

    def repeats(self) -> bool:
        """Whether the reference batch gives the same bits once more."""
        again = self.subject.run(self.batch)
        return again.keys() == self.reference.keys() and all(
            same_bits(leaf, again[path]) for path, leaf in self.reference.items()
        )

    def fixed_shape(self) -> Iterator[Probe]:
        """Other companions, then other positions, at the reference's shape."""
        everything = tuple(range(self.size))
        halves: tuple[tuple[int, ...], ...] = (everything[: self.size // 2], everything[self.size // 2 :])
        turned: tuple[tuple[int, ...], ...] = (tuple(reversed(everything)), (*everything[1:], 0))
        if self.subject.probes == "fast":
            halves, turned = halves[:1], turned[:1]
        for kind in companion_kinds(self.axis, self.batch):
            for subjects in halves:
                batch = beside(self.subject, self.batch, self.order, subjects, kind)
                if batch is not None:
                    yield Probe(kind, "EM171", batch, self.size, subjects, subjects)
        for permutation in turned:
            batch = self.subject.samples([self.order[position] for position in permutation])
            yield Probe("other positions", "EM172", batch, self.size, permutation, everything)

    def of_size(self, size: int) -> Probe:
        """The first samples of the reference in a batch of `size`."""
        shared = tuple(range(min(size, self.size)))
        order = [position % self.axis.size for position in range(size)]
        code = "EM173" if size == 1 else "EM171"
        return Probe(f"a batch of {size}", code, self.subject.samples(order), size, shared, shared)

    def alone(self) -> Iterator[Probe]:
        """Each of a few samples in a batch of its own."""
        for position in range(min(self.size, 4)):
            batch = self.subject.samples([self.order[position]])
            yield Probe("a batch of 1", "EM173", batch, 1, (position,), (0,))

    def compare(self, probe: Probe) -> Comparison | None:
        """The outputs of `probe` against the reference, bit by bit; None if the model refuses such companions."""
        try:
            outputs = self.subject.run(probe.batch)
        except (ModelRunError, BatchError):  # a predictor refuses what its plan was not tested on
            if probe.kind in _REFUSABLE:
                return None
            raise
        self.count += 1
        if probe.kind.startswith("a batch of"):
            self._keep(probe.size, outputs)
        return self._against(probe, self.reference, outputs)

    def nature(self, comparison: Comparison) -> Nature:
        """Whether a difference stays in fp64.

        Raises:
            WideUnsupportedError: the model cannot be run in fp64.
        """
        found = comparison.found
        if found.lost:
            return Nature.ROUNDING
        decided = self.compare_wide(comparison.probe).found
        least = _DEPENDENCE * decided.scale + _SHRINKS * min(found.gap, decided.scale)
        if not decided.same and decided.gap > least:
            return Nature.DEPENDENCE
        return Nature.CHOICE if found.gap > _LARGE * found.scale else Nature.ROUNDING

    def without_fp64(self, comparison: Comparison) -> Comparison | None:
        """The comparison, if it is at one fixed shape and far larger than what rounding in every module comes to."""
        probe, found = comparison.probe, comparison.found
        if probe.size != self.size or found.lost or found.gap <= _LARGE * found.scale:
            return None
        everything = tuple(range(self.size))
        reference = Seats(self.reference, self.size, everything)
        try:
            with nudging():
                moved = self.reader.compare(reference, replace(reference, outputs=self.subject.run(self.batch)))
        except ModelRunError:
            return None
        self.count += 1
        if moved.lost or found.gap <= _FAR * moved.gap:
            return None
        return replace(comparison, narrow=f"rounding in every module moves it by {moved.gap:.2g} at most")

    def compare_wide(self, probe: Probe) -> Comparison:
        """The same comparison, both sides in fp64."""
        if self._wide is None:
            self._wide = self.subject.run_wide(self.batch)
        return self._against(probe, self._wide, self.subject.run_wide(probe.batch))

    def wide_dependence(self) -> Comparison | None:
        """A dependence that shows in fp64, where a choice falls otherwise than in fp32."""
        fixed = list(self.fixed_shape())
        for probe in sorted((*fixed, *self.alone()), key=lambda probe: probe.code == "EM172"):
            if probe.kind in _REFUSABLE:
                continue
            comparison = self.compare_wide(probe)
            if not comparison.found.same and comparison.found.gap > _LARGE * comparison.found.scale:
                return comparison
        return None

    def seen(self, comparison: Comparison) -> str:
        """A dependence in numbers."""
        probe, found = comparison.probe, comparison.found
        moved = "becomes NaN or infinite" if found.gap == float("inf") else f"moves by {found.gap:.2g}"
        if found.gap == float("inf") and "[i]" in found.leaf:
            moved = "becomes another one"
        elif found.gap == float("inf") and probe.kind == "NaN companions":
            moved = "becomes NaN"
        changed, answers = len(found.changed), found.answers
        if probe.code == "EM171" and probe.size == self.size and answers:
            for twin in self.fixed_shape():  # the other half of the samples beside such companions
                if twin.kind == probe.kind and twin.positions != probe.positions:
                    sibling = self.compare(twin)
                    changed += len(sibling.found.changed) if sibling is not None else 0
                    answers += sibling.found.answers if sibling and sibling.found.answers else len(twin.positions)
        text = f"{probe.kind}: {_shown(found.leaf)} {moved}"
        if answers:
            text += f", {changed} of {answers} answers change"
        return f"{text}; {comparison.narrow or 'fp64 agrees: no rounding'}"

    def runs_at(self, size: int) -> bool:
        """Whether the model runs on a batch of `size`."""
        if size not in self.sizes and size not in self.failed:
            try:
                self.compare(self.of_size(size))
            except ModelRunError as error:
                self.failed[size] = error
        return size in self.sizes

    def has_layout_at(self, size: int) -> bool:
        """Whether a batch of `size` gives every output with its batch axis."""
        return self.runs_at(size) and not self.at_size(size).found.lost

    def at_size(self, size: int) -> Comparison:
        """The outputs of a batch of `size` that has run, against the reference."""
        seats = self.sizes[size]
        first = Seats(self.reference, self.size, seats.positions)
        return Comparison(self.of_size(size), self.reader.compare(first, seats))

    def only_alone(self) -> bool:
        """Whether samples in batches of two still agree with the reference in fp64: being alone is what matters."""
        if not self.runs_at(2):
            return False
        for first in range(0, min(self.size, 6) - 1, 2):
            pair = (first, first + 1)
            batch = self.subject.samples([self.order[position] for position in pair])
            comparison = self.compare(Probe("a pair", "EM171", batch, 2, pair, (0, 1)))
            differs = comparison is not None and not comparison.found.same
            if comparison is not None and differs and self.nature(comparison) is not Nature.ROUNDING:
                return False
        return True

    def between(self, first: int, second: int) -> Difference:
        """The samples that batches of two sizes share, both of which have run."""
        shared = tuple(range(min(first, second, self.size)))
        one, other = (replace(self.sizes[size], positions=shared) for size in (first, second))
        return self.reader.compare(one, other)

    def samples_at(self, positions: Iterable[int]) -> int:
        """How many samples of the given batch lie at `positions` of the reference, where one may lie twice."""
        return len({self.order[position] for position in positions})

    def notes(self) -> tuple[str, ...]:
        """What was passed over, and at which sizes the model fails."""
        skipped = self.reader.skipped
        found = [f"outputs without a batch axis, not compared: {', '.join(skipped[:4])}"] if skipped else []
        if self.failed:
            found.append(f"the model fails at batch sizes {', '.join(map(str, sorted(self.failed)))}")
        return tuple(found)

    def _given(self) -> Outputs | None:
        """The outputs of the given batch, where it is the reference and they are known already."""
        plain = not self.subject.stilled and self.subject.mending is nullcontext
        return self.subject.given_outputs if plain and self.batch is self.subject.batch else None

    def _keep(self, size: int, outputs: Outputs) -> None:
        """Keep of a size's outputs what later comparisons read: where bits are those of the reference, a view of it."""
        count = min(size, self.size)
        shared = tuple(range(count))
        found = self.reader.compare(Seats(self.reference, self.size, shared), Seats(outputs, size, shared))
        self.sizes[size] = Seats(outputs, size, shared)
        if found.lost:
            return
        source, held = (self.reference, self.size) if found.same else (outputs, size)
        rows = self.reader.of_samples(source, held, count)
        if rows is not None:
            rows = rows if found.same or size == count else {path: leaf.clone() for path, leaf in rows.items()}
            self.sizes[size] = Seats(rows, count, shared)

    def _another_size(self) -> tuple[int | None, Outputs | None]:
        """A second batch size at which the model runs, to see which axes follow it, and its outputs."""
        wanted = (
            (2, self.size + 1, self.size - 1) if self.subject.probes == "fast" else (self.size + 1, self.size - 1, 2)
        )
        for size in wanted:
            if size == self.size or size < 1:
                continue
            try:
                outputs = self.subject.run(self.of_size(size).batch)
            except ModelRunError as error:
                self.failed[size] = error
                continue
            self.count += 1
            return size, outputs
        return None, None

    def _against(self, probe: Probe, reference: Outputs, outputs: Outputs) -> Comparison:
        first = Seats(reference, self.size, probe.reference_positions)
        return Comparison(probe, self.reader.compare(first, Seats(outputs, probe.size, probe.positions)))


def _shown(path: str) -> str:
    """The name of an output: `logits` for `['logits']`, `output 0` for `[0]`."""
    inner = path.removeprefix("['").removesuffix("']")
    if inner.isidentifier():
        return inner
    return f"output {path[1:-1]}" if path[1:-1].isdigit() else f"output{path}"
