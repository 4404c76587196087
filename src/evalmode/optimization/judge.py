"""What stands between a candidate and the win: the samples, their true answers, the gate, and the test of stability."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from evalmode.backends.backend import Chunk
from evalmode.errors import BackendError
from evalmode.observe.wide import WideUnsupportedError
from evalmode.optimization.companions import require_own_answers
from evalmode.optimization.probes import LEAST, probe_samples
from evalmode.optimization.reference import Reference, accepted_samples, evaluate_wide, reference_of
from evalmode.optimization.samples import Run, Samples
from evalmode.optimization.stability import Stability
from evalmode.optimization.subject import Subject
from evalmode.optimization.task_data import TaskData
from evalmode.optimization.task_margin import Refutation, verify_task
from evalmode.optimization.tolerance import Tolerance
from evalmode.optimization.verification import Verification, verify
from evalmode.predictor.optimized import OptimizedPredictor

__all__ = ["Judge", "judge_of"]

_FOR_STABILITY = 0.4  # of the seconds, for the part of it that may be left out
_STABILITY_RUNS = 10  # about how often each sample runs at one size
# The cost of a sample's answers, in runs of it: in fp64, as long as when results are moved by a rounding, and in fp32.
_WIDE, _PLAIN = 2.0, 6.0
FEWEST = 12  # samples, however slow the model is
_LONG = 2.0  # seconds of a sample's answers: what is done once in a process is little beside them
_MOST = 64  # samples beside which a sample's answer has to stay the same
_SLOW = 0.1  # seconds of a sample in fp32: it is run at two sizes, not three


@dataclass(frozen=True)
class Judge:
    """Judges candidates for one model.

    `references` makes the answers, once they are asked for. `samples` are those on which bits are compared: as many as
    the time allows, at least twice what an execution holds.
    `task` are the user's data with plain's own answers, for the tolerance of that name. `seconds` are those for a
    candidate: a part of them bounds the test of stability, beyond its most telling orders.
    """

    references: Callable[[], Reference]
    samples: Samples
    tolerance: Tolerance
    output_axes: tuple[int | None, ...]
    names: tuple[str, ...]
    task: TaskData | None = None
    candidates: int = 1
    seconds: float = math.inf

    @functools.cached_property
    def reference(self) -> Reference:
        """The answers in fp64, and what plain fp32 makes of them.

        Raises:
            OptimizationError: a sample's answer depends on its companions.
        """
        return self.references()

    def verify(self, runs: Mapping[int, Run], predictor: OptimizedPredictor | None = None) -> Verification:
        """Whether what runs executions of these sizes gives the model's answers, or answers the task as well."""
        if self.task is None or predictor is None:
            return verify(runs, self.reference, self.tolerance)
        try:
            refutation = Refutation(self.task.plain, self.tolerance, self.candidates)
            answers = self.task.answers(predictor.predict, refutation.add)
        except BackendError as error:
            return Verification(accepted=False, reason=f"fails on the data of the task: {error.got}")
        return verify_task(self.task.plain, answers, self.tolerance, candidates=self.candidates)

    def instability(self, runs: Mapping[int, Run]) -> str:
        """What changes a sample's bits within an execution size or between sizes; empty where nothing does."""
        if all(axis is None for axis in self.samples.axes):
            return ""
        stability = Stability(self.samples, self.output_axes, names=self.names, seconds=_FOR_STABILITY * self.seconds)
        for size in sorted(runs):
            record = stability.add(size, runs[size])
            if not record.stable:
                return record.reason
        classes = stability.report().classes
        if len(classes) > 1:
            return f"sizes {classes[0][0]} and {classes[1][0]} give a sample other bits"
        return ""


def judge_of(
    subject: Subject, tolerance: Tolerance, *, task: TaskData | None = None, candidates: int = 1, seconds: float = 10.0
) -> Judge:
    """Samples like the user's with edges among them, and their answers in fp64 and in plain fp32.

    Units: `seconds` for the answers; a test of stability is made to take a part of them.

    Raises:
        ModelRunError: the model fails on its own samples.
    """
    program = subject.program
    size = min(max(subject.sizes), 8)
    probes = probe_samples(program.inputs, program.input_axes, program.input_names, taken=subject.integer_ranges)
    parts = _affordable(subject, probes, size, seconds)
    begin = time.perf_counter()
    kept, _ = accepted_samples(subject.plain_flat, parts, size)
    each = (time.perf_counter() - begin) / max(1, sum(map(len, parts)))
    sizes = {1, size} if each > _SLOW else {1, 2, size}
    names = tuple(tensor.name for tensor in subject.output_tensors())

    def references() -> Reference:
        found = reference_of(
            subject.plain_flat,
            kept,
            program.output_axes,
            names=names,
            sizes=tuple(sorted(sizes)),
            known=(size,),
            seconds=seconds,
            model=subject.flat,
        )
        require_own_answers(subject.plain_flat, found, subject.flat, most=min(max(subject.sizes), _MOST))
        return found

    affordable = int(seconds / max(each, 1e-9) / _STABILITY_RUNS)
    wanted = max(min(affordable, max(len(kept[0]), LEAST)), min(len(kept[0]), 2 * max(subject.sizes), 16))
    samples = kept[0] if wanted >= len(kept[0]) else kept[0].chosen(range(wanted))
    return Judge(references, samples, tolerance, program.output_axes, names, task, candidates, seconds)


def _affordable(subject: Subject, parts: tuple[Samples, ...], size: int, seconds: float) -> tuple[Samples, ...]:
    """As many samples as can be answered in the time, the most telling first; never fewer than `FEWEST`.

    Each is answered once in fp64 and several times in fp32; fp64 convolutions may be many times slower than fp32 ones.
    """
    each = _answer_seconds(subject, parts[0], size)
    count = max(FEWEST, int(seconds / max(each, 1e-9)))
    if count >= sum(map(len, parts)):
        return parts
    kept = parts[0].chosen(range(min(count, len(parts[0]))))
    return (kept, *(part for part in parts[1:] if len(part) <= count - len(kept)))


def _answer_seconds(subject: Subject, part: Samples, size: int) -> float:
    """What the answers of one sample take, in the smallest batch that the model takes; it may refuse one of one.

    Timed twice where it is short: the first time holds what is done once in a process.
    """
    for held in sorted({1, 2, size}):
        chunk = part.at([0] * held)
        with contextlib.suppress(Exception):  # what the model refuses is told by `accepted_samples`
            first = _once(subject, chunk)
            return (first if first > _LONG else min(first, _once(subject, chunk))) / held
    return 0.0


def _once(subject: Subject, chunk: Chunk) -> float:
    begin = time.perf_counter()
    subject.plain_flat(*chunk)
    between = time.perf_counter()
    with contextlib.suppress(WideUnsupportedError):
        evaluate_wide(subject.plain_flat, chunk, subject.flat)
    return (between - begin) * _PLAIN + (time.perf_counter() - between) * _WIDE
