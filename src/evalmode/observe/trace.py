"""Follow the operators of a forward pass, to find the first one at which two runs part.

Operators are matched by module, line and count, so that a branch taken in one run only does not hide what comes after
it. Only short summaries are kept, never activations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from evalmode.finding import Place
from evalmode.observe.attribution import ModuleStack, place_of
from evalmode.observe.batching import Layout, layout_between, readings
from evalmode.observe.following import Operators, changed_tensors
from evalmode.observe.layouts import dense_parts
from evalmode.observe.summary import Summary, differ, summary_of
from evalmode.observe.tree import dense_leaves, tensor_leaves

__all__ = ["Parting", "Run", "first_dependence", "first_leak"]

Key = tuple[str, str, str, int, int]
_REACH = 200
_READ_OUTS = ("aten._local_scalar_dense", "aten.equal", "aten.is_nonzero")
Line = tuple[str, str, int]
Shapes = dict[Key, tuple[tuple[int, ...], ...]]
Rows = Callable[[torch.Tensor, tuple[int, ...] | None], list[torch.Tensor] | None]
"""The parts of an operator's output that are compared, in each way to read them; None if it has none. The shape is the
one that the sizing run gave."""


@dataclass(frozen=True, slots=True)
class Parting:
    """The operator at which two runs part, and its place.

    `mixed_at` is the place of an earlier operator that already carried the difference without a batch axis: a mean or a
    maximum over the batch, on a line before the one that brings it into each sample; `mixed_by` is that operator.
    `branch` says that one of the runs did not reach the line at all, or decided otherwise there.
    """

    operator: str
    place: Place
    mixed_at: Place | None = None
    mixed_by: str = ""
    branch: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """A forward pass to follow: the function that runs it, its batch, how many samples it has, and which count."""

    function: Callable[[], Any]
    batch: Any
    size: int
    positions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Step:
    """One operator of a followed run: what identifies it, its place, its outputs' shapes and summaries, and the steps
    that made its operands. `noise` is the magnitude of those operands."""

    key: Key
    operator: str
    place: Place
    shapes: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[Summary, ...] | None, ...]
    whole: tuple[Summary | None, ...]
    from_batch: bool
    sources: tuple[int, ...]
    noise: float

    @property
    def magnitude(self) -> float:
        """The largest sum of magnitudes among the outputs."""
        ways = [way for ways in self.rows if ways is not None for way in ways]
        return max((way[1] for way in (*ways, *(one for one in self.whole if one is not None))), default=0.0)


class _Recorder:
    """The steps of one run, in order; summaries are made of what `rows` picks, none if it is None."""

    def __init__(self, run: Run, model: nn.Module | None, shapes: Shapes, rows: Rows | None) -> None:
        self.steps: list[_Step] = []
        self._shapes = shapes
        self._rows = rows
        self._counts: dict[tuple[str, str, str, int], int] = {}
        self._derived: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._given = 0.0
        for _, leaf in tensor_leaves(run.batch):
            self._derived[leaf] = -1
        for _, leaf in dense_leaves(run.batch):
            if leaf.is_floating_point():
                self._given += float(leaf.double().abs().nan_to_num(posinf=0.0).sum())
        with ModuleStack(model) as self._stack, Operators(self._seen):
            run.function()

    def _seen(self, func: Any, args: tuple[Any, ...], named: dict[str, Any], tensors: list[torch.Tensor]) -> None:
        place = place_of(self._stack.top)
        name = str(func)
        short = (place.module, name, place.file, place.line)
        count = self._counts[short] = self._counts.get(short, 0) + 1
        operands = [leaf for leaf in pytree.tree_leaves((args, named)) if isinstance(leaf, torch.Tensor)]
        sources = {self._derived[leaf] for leaf in operands if leaf in self._derived}
        derived = bool(sources)
        outputs = changed_tensors(func, args, named, tensors)
        if derived:
            for tensor in outputs:
                self._derived[tensor] = len(self.steps)
        outputs = [dense for tensor in outputs if not tensor.is_nested for dense in dense_parts(tensor)]
        key = (*short, count)
        rows, whole = self._summaries(key, outputs) if derived and self._rows is not None else ((), ())
        noise = max((self._given if source < 0 else self.steps[source].magnitude for source in sources), default=0.0)
        shapes = tuple(tuple(tensor.shape) for tensor in outputs)
        before = tuple(sorted(sources - {-1}))
        self.steps.append(_Step(key, name, place, shapes, rows, whole, derived, before, noise))

    def _summaries(
        self, key: Key, outputs: list[torch.Tensor]
    ) -> tuple[tuple[tuple[Summary, ...] | None, ...], tuple[Summary | None, ...]]:
        known = self._shapes.get(key, ())
        rows: list[tuple[Summary, ...] | None] = []
        whole: list[Summary | None] = []
        for position, tensor in enumerate(outputs):
            picked = None
            if self._rows is not None:
                picked = self._rows(tensor, known[position] if len(known) == len(outputs) else None)
            if picked is None:
                rows.append(None)
                whole.append(summary_of(tensor) if tensor.is_floating_point() else None)
            else:
                rows.append(tuple(summary_of(one) for one in picked))
                whole.append(None)
        return tuple(rows), tuple(whole)


def _of_samples(run: Run, other: int) -> Rows:
    """The rows of the samples that count, along the axes that followed the batch to `other` samples."""

    def rows(tensor: torch.Tensor, known: tuple[int, ...] | None) -> list[torch.Tensor] | None:
        if known is None:
            layout = _by_size(tensor, run.size)
        else:
            layout = layout_between(tensor.shape, run.size, known, other)
        return readings(tensor, layout, run.size, run.positions) if layout is not None else None

    return rows


def _without_padding(
    tensor: torch.Tensor, known: tuple[int, ...] | None, *, at_start: bool = False
) -> list[torch.Tensor] | None:
    """What is left of a tensor when every axis is cut to the length that it has without padding."""
    if known is None or tensor.dim() != len(known) or any(a < b for a, b in zip(tensor.shape, known, strict=True)):
        return None
    for axis, length in enumerate(known):
        tensor = tensor.narrow(axis, tensor.shape[axis] - length if at_start else 0, length)
    return [tensor]


def first_leak(padded: Run, cut: Run, model: nn.Module | None, *, at_start: bool = False) -> Parting | None:
    """The first operator that carries padding into the samples; `padded` is `cut` with padding after it, or before."""
    after = _Recorder(cut, model, {}, lambda tensor, _: [tensor]).steps
    shapes = {step.key: step.shapes for step in after}
    before = _Recorder(padded, model, shapes, functools.partial(_without_padding, at_start=at_start)).steps
    return _parting(before, after, branches=False)


def first_dependence(first: Run, second: Run, sizing: Run | None, model: nn.Module | None) -> Parting | None:
    """The first operator whose rows for the same samples differ between two runs.

    `sizing` is a third run with another number of samples, which shows the batch axes of every intermediate. Only what
    is computed from the batch counts: an index along the batch differs by position and is no dependence by itself.
    """
    shapes: Shapes = {}
    if sizing is not None:
        shapes = {step.key: step.shapes for step in _Recorder(sizing, model, {}, None).steps}
    other = sizing.size if sizing is not None else 0
    before = _Recorder(first, model, shapes, _of_samples(first, other)).steps
    after = _Recorder(second, model, shapes, _of_samples(second, other)).steps
    decision = _decision(before, after) if first.size == second.size else None
    return _parting(before, after, decision=decision)


def _parting(
    before: list[_Step], after: list[_Step], *, branches: bool = True, decision: _Step | None = None
) -> Parting | None:
    """Where two runs part; without `branches`, a line that one of them did not reach is to blame only if nothing else
    is: a mask without padding may be left out. A `decision` is to blame for what only one of the runs did after it."""
    known = _matched(before, after)
    verdicts = [_agree(known[id(step)], step) if id(step) in known else None for step in after]
    lines_before, lines_after = {_line(step) for step in before}, {_line(step) for step in after}
    new = {position for position, step in enumerate(after) if step.rows and _line(step) not in lines_before}
    suspects = [position for position, verdict in enumerate(verdicts) if verdict is False or position in new]
    if not branches and any(position not in new for position in suspects):
        suspects, new = [position for position in suspects if position not in new], set()
    if not suspects:
        if decision is not None:
            return Parting(decision.operator, decision.place, branch=True)
        skipped = _skipped(before, lines_after, range(len(before))[-8:])
        return Parting(skipped.operator, skipped.place, branch=True) if skipped is not None else None
    tainted = _upstream(after, verdicts, suspects[-1])
    position = min(tainted & set(suspects))
    if decision is not None and any(_of_another_turn(known, after[index]) for index in tainted):
        return Parting(decision.operator, decision.place, branch=True)
    blamed, skipped = after[position], None
    if position not in new and branches:
        earlier = known[id(blamed)]
        end = next(index for index, step in enumerate(before) if step is earlier)
        skipped = _skipped(before, lines_after, sorted(_behind(before, lines_after, end)))
        blamed = skipped or blamed
    mixed = next((after[index] for index in sorted(tainted) if index < position and _mixes(known, after[index])), None)
    branch = position in new or skipped is not None
    if mixed is None:
        return Parting(blamed.operator, blamed.place, branch=branch)
    return Parting(blamed.operator, blamed.place, mixed.place, mixed.operator, branch)


def _decision(before: list[_Step], after: list[_Step]) -> _Step | None:
    """What Python decided by: the last value that was read out of a tensor and differs, before two runs of one size
    go separate ways."""
    lengths = len(before), len(after)
    same = (one.key == other.key for one, other in zip(before, after, strict=False))
    split = next((index for index, agrees in enumerate(same) if not agrees), min(lengths))
    if split == max(lengths):
        return None
    for index in reversed(range(split)):
        one, other = before[index], after[index]
        if other.operator.startswith(_READ_OUTS) and other.from_batch and _whole_differs(one, other):
            return other
    return None


def _of_another_turn(known: dict[int, _Step], step: _Step) -> bool:
    """Whether only one of the runs took the step, or both in another turn of a loop."""
    return id(step) not in known or known[id(step)].key != step.key


def _upstream(steps: list[_Step], verdicts: list[bool | None], end: int) -> set[int]:
    """The steps from which the difference at `end` may have come: back through its operands, up to where both runs
    agree. A difference that heals on the way (rows sorted by expert and put back) is not among them."""
    reached: set[int] = set()
    pending = [end]
    while pending:
        position = pending.pop()
        if position in reached or (verdicts[position] is True and position != end):
            continue
        reached.add(position)
        pending.extend(steps[position].sources)
    return reached


def _mixes(known: dict[int, _Step], step: _Step) -> bool:
    return id(step) in known and _whole_differs(known[id(step)], step)


def _line(step: _Step) -> Line:
    return step.key[0], step.key[2], step.key[3]


def _matched(before: list[_Step], after: list[_Step]) -> dict[int, _Step]:
    """The step of the first run for each of the second, by `id`.

    Where a line ran other operators in the second run (another algorithm at another size), only its last one is
    matched, if that is the same operator.
    """
    lines: tuple[dict[Line, list[_Step]], dict[Line, list[_Step]]] = ({}, {})
    for steps, of_line in zip((before, after), lines, strict=True):
        for step in steps:
            if step.from_batch:
                of_line.setdefault(_line(step), []).append(step)
    found: dict[int, _Step] = {}
    for line, seconds in lines[1].items():
        firsts = lines[0].get(line, [])
        if [step.operator for step in firsts] == [step.operator for step in seconds]:
            found |= {id(second): first for first, second in zip(firsts, seconds, strict=True)}
        elif firsts and firsts[-1].operator == seconds[-1].operator:
            found[id(seconds[-1])] = firsts[-1]
    return found


def _behind(before: list[_Step], lines: set[Line], end: int) -> set[int]:
    """The steps of the first run behind the step at `end`: the few before it, and those that led to it up to the first
    line that the second run did not reach."""
    found = set(range(max(0, end - 8), end))
    pending, met = [end], set()
    while pending:
        index = pending.pop()
        if index in met:
            continue
        met.add(index)
        if index == end or _line(before[index]) in lines:
            pending.extend(source for source in before[index].sources if len(met) < _REACH)
    return found | met - {end}


def _skipped(before: list[_Step], lines: set[Line], among: Sequence[int]) -> _Step | None:
    """The last step of the first run, among the given, on a line that the second run did not reach."""
    steps = (before[index] for index in reversed(among))
    return next((step for step in steps if step.rows and _line(step) not in lines), None)


def _agree(first: _Step, second: _Step) -> bool | None:
    """Whether the samples' rows agree in every output; None if no output has any."""
    verdict: bool | None = None
    for one, other in zip(first.rows, second.rows, strict=False):
        if one is None or other is None:
            continue
        if all(differ(a, b, max(first.noise, second.noise)) for a, b in zip(one, other, strict=False)):
            return False
        verdict = True
    return verdict


def _whole_differs(first: _Step, second: _Step) -> bool:
    pairs = zip(first.whole, second.whole, strict=False)
    return any(
        one is not None and other is not None and differ(one, other, max(first.noise, second.noise))
        for one, other in pairs
    )


def _by_size(tensor: torch.Tensor, size: int) -> Layout | None:
    axes = [(axis, 1) for axis, length in enumerate(tensor.shape) if length == size]
    return Layout((axes[0],)) if axes and size > 1 else None
