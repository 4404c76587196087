"""Follow the operators of a forward pass, to find the first one at which two runs part or a value stops being finite.

Operators are matched by module, line and count, so that a branch taken in one run only does not hide what comes after
it. Only short summaries are kept, never activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from evalmode.finding import Place
from evalmode.observe.attribution import ModuleStack, place_of
from evalmode.observe.batching import Layout, layout_between, readings
from evalmode.observe.operators import written_tensors
from evalmode.observe.tree import tensor_leaves

__all__ = ["Parting", "Run", "first_dependence", "first_difference", "first_non_finite"]

_UNINITIALISED = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "resize_")
_RELATIVE = 1e-11
Summary = tuple[float, ...]
Key = tuple[str, str, str, int, int]
Line = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Parting:
    """The operator at which two runs part (or a value stops being finite), and its place.

    `mixed_at` is the place of an earlier operator that already carried the difference without a batch axis: a mean or a
    maximum over the batch, on a line before the one that brings it into each sample.
    """

    operator: str
    place: Place
    mixed_at: Place | None = None


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
    that made its operands."""

    key: Key
    operator: str
    place: Place
    shapes: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[Summary, ...] | None, ...]
    whole: tuple[Summary | None, ...]
    from_batch: bool
    sources: tuple[int, ...]


class _Operators(TorchDispatchMode):
    """Hands every operator with its operands and outputs to `seen`."""

    def __init__(self, seen: Callable[[Any, tuple[Any, ...], dict[str, Any], list[torch.Tensor]], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
        if func._schema.name.removeprefix("aten::") not in _UNINITIALISED:  # noqa: SLF001 - the documented schema
            self._seen(func, args, kwargs or {}, tensors)
        return outputs


class _Recorder:
    """The steps of one run, in order."""

    def __init__(
        self, run: Run, model: nn.Module | None, shapes: dict[Key, tuple[tuple[int, ...], ...]], other: int
    ) -> None:
        self.steps: list[_Step] = []
        self._run = run
        self._shapes = shapes
        self._other = other
        self._counts: dict[tuple[str, str, str, int], int] = {}
        self._derived: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for _, leaf in tensor_leaves(run.batch):
            self._derived[leaf] = -1
        with ModuleStack(model) as self._stack, _Operators(self._seen):
            run.function()

    def _seen(self, func: Any, args: tuple[Any, ...], named: dict[str, Any], tensors: list[torch.Tensor]) -> None:
        place = place_of(self._stack.top)
        name = str(func)
        short = (place.module, name, place.file, place.line)
        count = self._counts[short] = self._counts.get(short, 0) + 1
        operands = [leaf for leaf in pytree.tree_leaves((args, named)) if isinstance(leaf, torch.Tensor)]
        sources = {self._derived[leaf] for leaf in operands if leaf in self._derived}
        derived = bool(sources)
        outputs = list(tensors)
        for written in written_tensors(func, args, named):  # a write through a view changes what it is a view of
            base = written._base  # noqa: SLF001 - the documented attribute of a view
            if base is not None:
                outputs.append(base)
        if derived:
            for tensor in outputs:
                self._derived[tensor] = len(self.steps)
        key = (*short, count)
        rows, whole = self._summaries(key, outputs) if derived else ((), ())
        shapes = tuple(tuple(tensor.shape) for tensor in outputs)
        self.steps.append(_Step(key, name, place, shapes, rows, whole, derived, tuple(sorted(sources - {-1}))))

    def _summaries(
        self, key: Key, outputs: list[torch.Tensor]
    ) -> tuple[tuple[tuple[Summary, ...] | None, ...], tuple[Summary | None, ...]]:
        if not self._run.positions:
            return (), ()
        known = self._shapes.get(key, ())
        rows: list[tuple[Summary, ...] | None] = []
        whole: list[Summary | None] = []
        for position, tensor in enumerate(outputs):
            if len(known) == len(outputs):
                layout = layout_between(tensor.shape, self._run.size, known[position], self._other)
            else:
                layout = _by_size(tensor, self._run.size)
            if layout is None:
                rows.append(None)
                whole.append(_summary(tensor) if tensor.is_floating_point() else None)
            else:
                of_samples = readings(tensor, layout, self._run.size, self._run.positions)
                rows.append(tuple(_summary(one) for one in of_samples))
                whole.append(None)
        return tuple(rows), tuple(whole)


def first_dependence(first: Run, second: Run, sizing: Run | None, model: nn.Module | None) -> Parting | None:
    """The first operator whose rows for the same samples differ between two runs.

    `sizing` is a third run with another number of samples, which shows the batch axes of every intermediate. Only what
    is computed from the batch counts: an index along the batch differs by position and is no dependence by itself.
    """
    shapes: dict[Key, tuple[tuple[int, ...], ...]] = {}
    if sizing is not None:
        shapes = {step.key: step.shapes for step in _Recorder(sizing, model, {}, 0).steps}
    other = sizing.size if sizing is not None else 0
    before = _Recorder(first, model, shapes, other).steps
    after = _Recorder(second, model, shapes, other).steps
    known = _matched(before, after)
    verdicts = [_agree(known[id(step)], step) if id(step) in known else None for step in after]
    lines_before, lines_after = {_line(step) for step in before}, {_line(step) for step in after}
    new = {position for position, step in enumerate(after) if step.rows and _line(step) not in lines_before}
    suspects = [position for position, verdict in enumerate(verdicts) if verdict is False or position in new]
    if not suspects:
        skipped = _skipped(before, lines_after, len(before))
        return Parting(skipped.operator, skipped.place) if skipped is not None else None
    tainted = _upstream(after, verdicts, suspects[-1])
    position = min(tainted & set(suspects))
    blamed = after[position]
    if position not in new:
        earlier = known[id(blamed)]
        end = next(index for index, step in enumerate(before) if step is earlier)
        blamed = _skipped(before, lines_after, end) or blamed
    mixed = next((after[index] for index in sorted(tainted) if index < position and _mixes(known, after[index])), None)
    return Parting(blamed.operator, blamed.place, mixed.place if mixed is not None else None)


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


def _skipped(before: list[_Step], lines: set[Line], end: int) -> _Step | None:
    """The last step of the first run, among the few before `end`, on a line that the second run did not reach."""
    return next((step for step in reversed(before[:end][-8:]) if step.rows and _line(step) not in lines), None)


def _agree(first: _Step, second: _Step) -> bool | None:
    """Whether the samples' rows agree in every output; None if no output has any."""
    verdict: bool | None = None
    for one, other in zip(first.rows, second.rows, strict=False):
        if one is None or other is None:
            continue
        if all(_differ(a, b) for a, b in zip(one, other, strict=False)):
            return False
        verdict = True
    return verdict


def _whole_differs(first: _Step, second: _Step) -> bool:
    pairs = zip(first.whole, second.whole, strict=False)
    return any(one is not None and other is not None and _differ(one, other) for one, other in pairs)


def first_difference(runs: tuple[Callable[[], Any], Callable[[], Any]], model: nn.Module | None) -> Parting | None:
    """The first operator whose outputs differ, or that is another one, in the second run."""
    found: list[Parting] = []
    summaries: list[tuple[str, list[Summary]]] = []

    def first(func: Any, args: Any, named: Any, tensors: list[torch.Tensor]) -> None:
        summaries.append((str(func), [_summary(tensor) for tensor in tensors]))

    with _Operators(first):
        runs[0]()
    remaining = iter(summaries)
    with ModuleStack(model) as stack:

        def second(func: Any, args: Any, named: Any, tensors: list[torch.Tensor]) -> None:
            if not found and next(remaining, None) != (str(func), [_summary(tensor) for tensor in tensors]):
                found.append(Parting(str(func), place_of(stack.top)))

        with _Operators(second):
            runs[1]()
    return found[0] if found else None


def first_non_finite(run: Callable[[], Any], model: nn.Module | None) -> Parting | None:
    """The operator with which values stopped being finite.

    It is the first that makes a NaN out of operands without one; if those held an infinity, the operator that made the
    infinity out of finite operands, unless it was told to (a mask filled with -inf). Without a NaN it is the first that
    made an infinity.
    """
    made: list[Parting] = []
    told: list[Parting] = []
    found: list[Parting] = []
    with ModuleStack(model) as stack:

        def seen(func: Any, args: Any, named: Any, tensors: list[torch.Tensor]) -> None:
            nan, infinite = (any(_has(tensor, kind) for tensor in tensors) for kind in ("nan", "inf"))
            if found or not (nan or infinite):
                return
            outputs = {id(tensor) for tensor in tensors}
            leaves = pytree.tree_leaves((args, named))
            operands = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and id(leaf) not in outputs]
            if any(_has(leaf, "nan") for leaf in operands):
                return
            from_infinity = any(_has(leaf, "inf") for leaf in operands)
            here = Parting(str(func), place_of(stack.top))
            if nan:
                found.append(made[0] if from_infinity and made else here)
            elif not from_infinity:
                by_order = any(isinstance(leaf, float) and leaf in (float("inf"), float("-inf")) for leaf in leaves)
                (told if by_order else made).append(here)

        with _Operators(seen):
            run()
    return next(iter([*found, *made, *told]), None)


def _has(tensor: torch.Tensor, kind: str) -> bool:
    if not tensor.is_floating_point() and not tensor.is_complex():
        return False
    return bool(tensor.isnan().any() if kind == "nan" else tensor.isinf().any())


def _by_size(tensor: torch.Tensor, size: int) -> Layout | None:
    axes = [(axis, 1) for axis, length in enumerate(tensor.shape) if length == size]
    return Layout((axes[0],)) if axes and size > 1 else None


def _summary(tensor: torch.Tensor) -> Summary:
    """A weighted sum, the sum of magnitudes, and how many NaN and infinities: what tells two tensors apart."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return (0.0, 0.0, 0.0, 0.0, float(tensor.numel()))
    values = tensor.detach()
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    flat = values.reshape(-1).to(torch.float64)
    finite = torch.where(flat.isfinite(), flat, torch.zeros_like(flat))
    order = torch.arange(len(flat), dtype=torch.float64, device=flat.device)
    weights = 1.0 + 0.5 * torch.cos(order * 1.7 + 0.3)  # tells orders apart, and a constant shift does not cancel
    return (
        float((finite * weights).sum()),
        float(finite.abs().sum()),
        float(flat.isnan().sum()),
        float((flat == float("inf")).sum() - (flat == float("-inf")).sum()),
        float(len(flat)),
    )


def _differ(first: Summary, second: Summary) -> bool:
    if first[2:] != second[2:]:
        return True
    return abs(first[0] - second[0]) > _RELATIVE * max(first[1], second[1], 1e-300)
