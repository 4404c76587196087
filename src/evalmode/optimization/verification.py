"""The gate: whether a candidate gives the user's own answers, or why it is excluded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evalmode.backends.backend import Chunk
from evalmode.optimization.judging import Fault, LeafJudge
from evalmode.optimization.reference import Reference
from evalmode.optimization.samples import Run, Samples, ran
from evalmode.optimization.tolerance import Tolerance

__all__ = ["Verification", "verify"]

_FEWEST_PARDONS = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What the gate found about one candidate.

    `reason` is one line for the user. `error` is the largest error of the rows like the user's data as a share of the
    output's scale, `plain_error` that of plain fp32; `ratio` is how many times the one is the other, and `margin` how
    much of what is allowed was used (above 1 where it was not accepted for it). `output` is where. `samples` were
    compared `probes` times in all; `discontinuous` of them take another branch in fp32 than in fp64 by rounding alone,
    and were compared by share. `only_non_finite` says that all that was found wrong are the answers to inputs with NaN
    or an infinity.
    """

    accepted: bool
    reason: str
    strength: str = "within tolerance"
    output: str = ""
    error: float = 0.0
    plain_error: float = 0.0
    ratio: float = 0.0
    margin: float = 0.0
    samples: int = 0
    probes: int = 0
    discontinuous: int = 0
    only_non_finite: bool = False
    notes: tuple[str, ...] = ()


def verify(
    runs: Mapping[int, Run], reference: Reference, tolerance: Tolerance | None = None, *, seed: int = 0
) -> Verification:
    """Whether a candidate's answers are the reference's, within a multiple of plain fp32's own error.

    `runs` gives for each size what runs batches of that size: an executor for its execution shape, or a whole plan for
    sizes that a caller might send. Every sample is run at every size in two orders, so that every position of a batch
    is seen; the last batch is filled up with samples of its own, and those are compared too.

    Example:
        >>> from evalmode.optimization.probes import probe_samples
        >>> from evalmode.optimization.reference import reference_of
        >>> plain = lambda x: (torch.nn.functional.gelu(x),)
        >>> reference = reference_of(plain, probe_samples((torch.randn(4, 8),), (0,), ("x",)), (0,))
        >>> other = lambda x: (torch.nn.functional.gelu(x, approximate="tanh"),)
        >>> verify({2: lambda chunks: [plain(*chunk) for chunk in chunks]}, reference).accepted
        True
        >>> verify({2: lambda chunks: [other(*chunk) for chunk in chunks]}, reference).accepted
        False
    """
    if reference.moving:
        return Verification(
            accepted=False, reason=f"{reference.moving[0]} belongs to no sample, and changes with the batch"
        )
    trial = _Trial(reference, [LeafJudge(leaf, tolerance or Tolerance()) for leaf in reference.leaves])
    for size in sorted(runs):
        for part, order in _orders(reference, size, seed):
            try:
                trial.run(runs[size], part, order, size)
            except Exception as error:  # noqa: BLE001 - a candidate that fails where the model does not is excluded
                trial.fault = Fault(f"it fails: {type(error).__name__}: {error}".splitlines()[0], where=f"size {size}")
            if trial.fault is not None:
                return trial.verification()
    for number, judge in enumerate(trial.judges):
        late = judge.over_all()
        if late is not None:
            trial.fault = dataclasses.replace(late, leaf=number)
            return trial.verification()
    return trial.verification()


@dataclasses.dataclass(slots=True)
class _Trial:
    """A candidate under test: what was found so far. `excused` is a fault in the answers to non-finite inputs."""

    reference: Reference
    judges: list[LeafJudge]
    probes: int = 0
    fault: Fault | None = None
    excused: Fault | None = None
    pardons: int = 0

    def run(self, run: Run, part: int, order: Sequence[int], size: int) -> None:
        samples = self.reference.parts[part]
        sound = samples.finite()
        for positions, outputs in ran(run, samples, order, size):
            self.probes += len(positions)
            for found in self._faults(part, positions, outputs):
                if found.jump and self._pardons(found, part, positions):
                    continue
                self.judges[found.leaf].margin = max(self.judges[found.leaf].margin, found.share)
                shared = self.judges[found.leaf].leaf.axis is None or found.position < 0
                held = positions if shared else [positions[found.position]]
                placed = _placed(samples, found, positions, size)
                if not all(sound[place] for place in held) and found.position >= 0:
                    self.excused = self.excused or placed
                elif self.fault is None:
                    self.fault = placed
            if self.fault is not None:
                return

    def _pardons(self, found: Fault, part: int, positions: Sequence[int]) -> bool:
        """Whether the plain model jumps there too, if run often enough; only in what jumps then is it pardoned."""
        if self.pardons >= max(_FEWEST_PARDONS, len(self.reference) // 4):
            return False
        position = positions[found.position]
        jumping = self.reference.jumps(part, position)
        if found.leaf not in jumping:
            return False
        self.pardons += 1
        for number, judge in enumerate(self.judges):
            if number in jumping:
                judge.pardon(int(self.reference.rows(judge.leaf, part, [position])))
        return True

    def _faults(self, part: int, positions: Sequence[int], outputs: Chunk) -> list[Fault]:
        if len(outputs) != len(self.judges):
            return [Fault(f"{len(outputs)} outputs instead of {len(self.judges)}")]
        found: list[Fault] = []
        for number, (judge, output) in enumerate(zip(self.judges, outputs, strict=True)):
            rows = self.reference.rows(judge.leaf, part, positions)
            found.extend(dataclasses.replace(fault, leaf=number) for fault in judge.look_at(output, rows))
        return found

    def verification(self) -> Verification:
        fault = self.fault or self.excused
        floating = [judge for judge in self.judges if judge.leaf.floating]
        worst = max(self.judges, key=lambda judge: judge.margin)
        blamed = worst if fault is None else self.judges[fault.leaf]
        ratio = max((judge.ratio for judge in floating), default=0.0)
        total, discontinuous = len(self.reference), _discontinuous(self.judges)
        notes = list(self.reference.notes)
        if discontinuous:
            notes.append(f"{discontinuous} of {total} samples are discontinuous: compared by share")
        if fault is not None:
            reason = f"{blamed.leaf.name}: {fault.what}" + (f" ({fault.where})" if fault.where else "")
        elif floating:
            reason = f"{ratio:.2g}x the error of plain fp32 over {total} samples"
        else:
            reason = f"equal over {total} samples"
        return Verification(
            accepted=fault is None,
            reason=reason,
            output=blamed.leaf.name,
            error=max((judge.usual_error for judge in floating), default=0.0),
            plain_error=max((judge.plain_error for judge in floating), default=0.0),
            ratio=ratio,
            margin=worst.margin,
            samples=total,
            probes=self.probes,
            discontinuous=discontinuous,
            only_non_finite=fault is not None and self.fault is None,
            notes=tuple(notes),
        )


def _orders(reference: Reference, size: int, seed: int) -> list[tuple[int, list[int]]]:
    """For each part the samples as they are, then in another order."""
    generator = torch.Generator().manual_seed(seed + size)
    found: list[tuple[int, list[int]]] = []
    for place, part in enumerate(reference.parts):
        found.append((place, list(range(len(part)))))
        if len(part) > 1:
            found.append((place, torch.randperm(len(part), generator=generator).tolist()))
    return found


def _placed(samples: Samples, fault: Fault, positions: Sequence[int], size: int) -> Fault:
    """The fault with the sample and the position at which it was seen."""
    if fault.position < 0:
        return dataclasses.replace(fault, where=f"a batch of {size}")
    kind = samples.kinds[positions[fault.position]]
    return dataclasses.replace(fault, where=f"{kind}, position {fault.position} of {size}")


def _discontinuous(judges: Sequence[LeafJudge]) -> int:
    """How many samples are discontinuous in some output."""
    marked: Tensor | None = None
    for judge in judges:
        if judge.leaf.axis is not None:
            found = judge.apart
            marked = found if marked is None else marked | found
    return int(marked.sum()) if marked is not None else 0
