"""The probes of `batch-independent`: the same samples beside other companions, at other positions, in other sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from evalmode.checking.examination import Measured
from evalmode.checking.subject import Outputs, Subject
from evalmode.errors import ModelRunError, UsageError
from evalmode.observe.batching import BatchAxis, Layout, layout_between, readings, rows_agree
from evalmode.observe.tree import map_leaves, same_bits

__all__ = ["Comparison", "Probe", "Probes"]

_DEPENDENCE = 1e-10
_SHRINKS = 1e-5


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
    """What a probe gave for the samples it shares with the reference: the output that differs most, and by how much."""

    probe: Probe
    same: bool
    leaf: str = ""
    gap: float = 0.0
    scale: float = 1.0
    lost: bool = False
    shape: tuple[int, ...] = ()
    changed_answers: int = 0
    answers: int = 0


class Probes:
    """A reference batch of a fixed size, its outputs, and how other batches compare with it."""

    def __init__(self, subject: Subject, size: int) -> None:
        if isinstance(subject.axis, str):
            raise UsageError(f"the batch cannot be divided into samples: {subject.axis}")
        self.subject = subject
        self.axis: BatchAxis = subject.axis
        self.size = size
        self.order = tuple(position % self.axis.size for position in range(self.size))
        self.batch = subject.samples(self.order)
        self.reference = subject.run(self.batch)
        self.count = 1
        self.failed: dict[int, ModelRunError] = {}
        self._sizes: dict[int, Outputs] = {self.size: self.reference}
        self._wide: Outputs | None = None
        self.other_size = self._another_size()
        self.layouts = self._layouts()

    def repeats(self) -> bool:
        """Whether the reference batch gives the same bits once more."""
        again = self.subject.run(self.batch)
        return again.keys() == self.reference.keys() and all(
            same_bits(leaf, again[path]) for path, leaf in self.reference.items()
        )

    def fixed_shape(self) -> Iterator[Probe]:
        """Other companions, then other positions, at the reference's shape."""
        everything = tuple(range(self.size))
        halves = (everything[: self.size // 2], everything[self.size // 2 :])
        for name, change in _companions():
            if name == ("other companions" if self.axis.size == 1 else "shifted companions"):
                continue
            for subjects in halves:
                batch = self._beside(subjects, change, name)
                if batch is not None:
                    yield Probe(name, "EM171", batch, self.size, subjects, subjects)
        for permutation in (tuple(reversed(everything)), (*everything[1:], 0)):
            batch = self.subject.samples([self.order[position] for position in permutation])
            yield Probe("other positions", "EM172", batch, self.size, permutation, everything)

    def of_size(self, size: int) -> Probe:
        """The first samples of the reference in a batch of `size`."""
        shared = tuple(range(min(size, self.size)))
        order = [position % self.axis.size for position in range(size)]
        code = "EM173" if size == 1 else "EM171"
        return Probe(f"a batch of {size}", code, self.subject.samples(order), size, shared, shared)

    def compare(self, probe: Probe) -> Comparison | None:
        """The outputs of `probe` against the reference, bit by bit; None if the model refuses extreme companions."""
        try:
            outputs = self.subject.run(probe.batch)
        except ModelRunError:
            if probe.kind in ("extreme companions", "NaN companions"):
                return None
            raise
        self.count += 1
        if probe.kind.startswith("a batch of"):
            self._sizes[probe.size] = outputs
        return self._comparison(probe, self.reference, outputs)

    def is_dependence(self, comparison: Comparison) -> bool:
        """Whether a difference stays in fp64.

        Raises:
            WideUnsupportedError: the model cannot be run in fp64.
        """
        if comparison.lost:
            return False
        if self._wide is None:
            self._wide = self.subject.run_wide(self.batch)
        outputs = self.subject.run_wide(comparison.probe.batch)
        decided = self._comparison(comparison.probe, self._wide, outputs)
        if decided.same:
            return False
        return decided.gap > _DEPENDENCE * decided.scale + _SHRINKS * min(comparison.gap, decided.scale)

    def seen(self, comparison: Comparison) -> str:
        """A dependence in numbers."""
        moved = "becomes NaN" if comparison.gap == float("inf") else f"moves by {comparison.gap:.2g}"
        changed, answers = comparison.changed_answers, comparison.answers
        if comparison.probe.code == "EM171" and comparison.probe.size == self.size and answers:
            for probe in self.fixed_shape():  # the other half of the samples beside such companions
                if probe.kind == comparison.probe.kind and probe.positions != comparison.probe.positions:
                    sibling = self.compare(probe)
                    changed += sibling.changed_answers if sibling is not None else 0
                    answers += sibling.answers if sibling is not None and sibling.answers else len(probe.positions)
        text = f"{comparison.probe.kind}: {_shown(comparison.leaf)} {moved}"
        if answers:
            text += f", {changed} of {answers} answers change"
        return f"{text}; fp64 agrees: no rounding"

    def runs_at(self, size: int) -> bool:
        """Whether the model runs on a batch of `size`."""
        if size not in self._sizes and size not in self.failed:
            try:
                self.compare(self.of_size(size))
            except ModelRunError as error:
                self.failed[size] = error
        return size in self._sizes

    def has_layout_at(self, size: int) -> bool:
        """Whether a batch of `size` gives every output with its batch axis."""
        return self.runs_at(size) and not self._comparison(self.of_size(size), self.reference, self._sizes[size]).lost

    def only_alone(self) -> bool:
        """Whether a batch of two still agrees with the reference in fp64: being alone is what matters."""
        if not self.runs_at(2):
            return False
        comparison = self._comparison(self.of_size(2), self.reference, self._sizes[2])
        return comparison.same or not self.is_dependence(comparison)

    def size_classes(self, sizes: tuple[int, ...]) -> Measured:
        """The classes of batch sizes that agree bit for bit, and the largest difference between any two."""
        classes: list[list[int]] = []
        largest, changed, answers = 0.0, 0, 0
        for size in sorted({*sizes, self.size} & self._sizes.keys()):
            for members in classes:
                comparison = self._between(members[0], size)
                if comparison.same:
                    members.append(size)
                    break
                largest = max(largest, comparison.gap)
                changed += comparison.changed_answers
                answers += comparison.answers
            else:
                classes.append([size])
        measured: Measured = {"size classes": classes, "largest difference": largest}
        if answers:
            measured |= {"answers that change": changed, "answers compared": answers}
        return measured

    def notes(self) -> tuple[str, ...]:
        """What was passed over, and at which sizes the model fails."""
        skipped = [path for path in self.reference if path not in self.layouts]
        found = [f"outputs without a batch axis, not compared: {', '.join(skipped[:4])}"] if skipped else []
        if self.failed:
            found.append(f"the model fails at batch sizes {', '.join(map(str, sorted(self.failed)))}")
        return tuple(found)

    def rounding(self, measured: Measured) -> tuple[str, ...]:
        """The classes of batch sizes, in one line; nothing if all sizes agree bit for bit."""
        classes = measured["size classes"]
        if not isinstance(classes, list) or len(classes) < 2:
            return ()
        sizes = " | ".join(", ".join(map(str, members)) for members in classes if isinstance(members, list))
        line = f"rounding: sizes {sizes} differ by up to {measured['largest difference']:.1e}"
        if "answers compared" in measured:
            line += f"; {measured['answers that change']} of {measured['answers compared']} answers change"
        return (line,)

    def _another_size(self) -> int | None:
        """A second batch size at which the model runs, to see which axes follow it."""
        for size in (self.size + 1, self.size - 1, 2):
            try:
                self._sizes[size] = self.subject.run(self.of_size(size).batch)
            except ModelRunError as error:
                self.failed[size] = error
                continue
            self.count += 1
            return size
        return None

    def _layouts(self) -> dict[str, Layout]:
        found: dict[str, Layout] = {}
        other = self._sizes[self.other_size] if self.other_size is not None else {}
        for path, leaf in self.reference.items():
            layout = None
            if self.other_size is None:
                axes = [axis for axis, length in enumerate(leaf.shape) if length == self.size]
                layout = Layout(((axes[0], 1),)) if axes else None
            elif path in other:
                layout = layout_between(leaf.shape, self.size, other[path].shape, self.other_size)
            if layout is not None:
                found[path] = layout
        return found

    def _between(self, first: int, second: int) -> Comparison:
        shared = tuple(range(min(first, second, self.size)))
        probe = Probe("sizes", "EM171", None, second, shared, shared)
        return self._comparison(probe, self._sizes[first], self._sizes[second], first)

    def _comparison(self, probe: Probe, reference: Outputs, outputs: Outputs, size: int | None = None) -> Comparison:
        worst = Comparison(probe, same=True)
        base = self.size if size is None else size
        for path, layout in self.layouts.items():
            one, other = reference[path], outputs.get(path)
            if other is None or not _fits(one, base, other, probe.size, layout):
                shape = tuple(other.shape) if other is not None else ()
                return Comparison(probe, same=False, leaf=path, gap=float("inf"), lost=True, shape=shape)
            places = (probe.reference_positions, probe.positions)
            same, gap, scale = rows_agree(one, base, places[0], other, probe.size, places[1], layout)
            if not same and (worst.same or gap / (scale or 1.0) > worst.gap / (worst.scale or 1.0)):
                changed, answers = _answers(one, base, places[0], other, probe.size, places[1], layout)
                worst = Comparison(probe, False, path, gap, scale, False, tuple(other.shape), changed, answers)
        return worst

    def _beside(
        self, subjects: tuple[int, ...], change: Callable[[torch.Tensor], torch.Tensor], name: str
    ) -> Any | None:
        """The reference batch with everyone but `subjects` replaced; None if that changes nothing."""
        spare = self.axis.size - self.size
        order = list(self.order)
        if name == "other companions":
            for position in range(self.size):
                if position not in subjects:
                    shifted = self.size + position % spare if spare > 0 else subjects[position % len(subjects)]
                    order[position] = shifted if spare > 0 else self.order[shifted]
            return self.subject.samples(order)
        changed = False
        chosen = set(subjects)
        if self.axis.listed:
            return [
                leaf if i in chosen or not leaf.is_floating_point() else change(leaf)
                for i, leaf in enumerate(self.batch)
            ]

        def at(path: str, leaf: Any) -> Any:
            nonlocal changed
            shifted = name == "shifted companions" and leaf.dim() > 1 and "mask" not in path.lower()
            if path not in self.axis.paths or not (shifted or _is_content(path, leaf)):
                return leaf
            rows = torch.tensor(
                [position for position in range(self.size) if position not in chosen], device=leaf.device
            )
            new = change(leaf.index_select(self.axis.axis, rows))
            changed = True
            return leaf.index_copy(self.axis.axis, rows, new.to(leaf.dtype))

        batch = map_leaves(at, self.batch)
        return batch if changed else None


def _companions() -> tuple[tuple[str, Callable[[torch.Tensor], torch.Tensor]], ...]:
    return (
        ("other companions", lambda rows: rows),
        ("shifted companions", _half_repeated),
        ("extreme companions", lambda rows: rows.flip(-1) * 100 + 1),
        ("NaN companions", lambda rows: torch.full_like(rows, float("nan"))),
    )


def _shown(path: str) -> str:
    """The name of an output: `logits` for `['logits']`, `output 0` for `[0]`."""
    inner = path.removeprefix("['").removesuffix("']")
    if inner.isidentifier():
        return inner
    return f"output {path[1:-1]}" if path[1:-1].isdigit() else f"output{path}"


def _half_repeated(rows: torch.Tensor) -> torch.Tensor:
    """Other content of the same kind: every second value is the first one, so token ids stay in the vocabulary."""
    changed = rows.roll(1, -1)
    changed[..., ::2] = rows[..., :1]
    return changed


def _is_content(path: str, leaf: torch.Tensor) -> bool:
    """Floating values may be replaced; masks, lengths and indices keep their meaning only as they are."""
    return leaf.is_floating_point() and leaf.dim() > 0 and "mask" not in path.lower()


def _fits(first: torch.Tensor, first_size: int, second: torch.Tensor, second_size: int, layout: Layout) -> bool:
    if first.dim() != second.dim() or first.dtype != second.dtype:
        return False
    rows = dict(layout.axes)
    for axis, (one, other) in enumerate(zip(first.shape, second.shape, strict=True)):
        if axis in rows and (one != rows[axis] * first_size or other != rows[axis] * second_size):
            return False
        if axis not in rows and one != other:
            return False
    return True


def _answers(
    first: torch.Tensor,
    first_size: int,
    first_positions: tuple[int, ...],
    second: torch.Tensor,
    second_size: int,
    second_positions: tuple[int, ...],
    layout: Layout,
) -> tuple[int, int]:
    """How many of the samples' decisions change, where the output looks like one score a class."""
    if layout.axes != ((0, 1),) or first.dim() != 2 or first.shape[1] < 2 or not first.is_floating_point():
        return 0, 0
    one = readings(first, layout, first_size, first_positions)[0].argmax(1)
    other = readings(second, layout, second_size, second_positions)[0].argmax(1)
    return int((one != other).sum()), len(one)
