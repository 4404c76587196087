"""The gate of the tolerance `task`: how many answers change on the user's data, and what the metric may have lost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalmode.errors import MissingExtraError, UsageError
from evalmode.measure.exact import exact_mean
from evalmode.measure.intervals import mean_interval, proportion_interval
from evalmode.measure.metric import Aggregate
from evalmode.optimization.tolerance import Tolerance
from evalmode.optimization.verification import Verification

__all__ = [
    "LEFT_OUT",
    "Answers",
    "Figure",
    "decisions_of",
    "demand_data",
    "samples_needed",
    "verify_task",
]

LEFT_OUT = torch.iinfo(torch.int64).min
"""In place of a decision that does not count: what fills a sequence up, and what its target ignores."""
_NEAR = 0.05  # of an output's size, in the root of squares: what reduced precision does to values that decide nothing


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """A metric's value for each sample. `higher_is_better` None means unknown: then a change to either side counts.

    Shapes: `(N,)`, booleans for a proportion.
    """

    values: NDArray[np.bool_] | NDArray[np.float64]
    aggregate: Aggregate
    higher_is_better: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """What a model answered on the user's data: a decision for each sample, and its metrics by name.

    `others` are the outputs of the first batch that neither decide nor are measured, by name. `refuted` says why the
    rest of the data was not answered: nothing on it could make up for what was.

    Shapes: `decisions` `(N, ...)`, of whole numbers; several decisions a sample count as a share of it, without those
    that are `LEFT_OUT`.
    """

    decisions: Tensor | None
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    others: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    refuted: str = ""


def demand_data(data: object) -> None:
    """Nothing where there is data.

    Raises:
        UsageError: there is none: without the user's data the tolerance `task` would be a guess.
    """
    if data is None:
        raise UsageError(
            "tolerance 'task' was asked for without data",
            expected="samples like those the model will meet, on which changed decisions and the metric are counted",
            fix="give data=(inputs, targets), or test_data in the task file",
            explain="faithful",
        )


def decisions_of(outputs: Tensor) -> Tensor | None:
    """The decisions that scores stand for: the best class, of every position where there are several.

    Whole numbers are decisions themselves. None for one number a sample or a position, which may be a value as well as
    a score.

    Shapes: `(N, C)` gives `(N,)`, `(N, T, C)` `(N, T)`, `(N, C, H, W)` `(N, H, W)`.

    Example:
        >>> decisions_of(torch.tensor([[0.1, 0.9], [0.8, 0.2]])).tolist()
        [1, 0]
    """
    if outputs.is_complex():
        return None
    if not outputs.is_floating_point():
        return outputs
    axis = -1 if outputs.dim() == 3 else 1
    if outputs.dim() < 2 or outputs.shape[axis] < 2:
        return None
    return outputs.argmax(axis)


def samples_needed(tolerance: Tolerance, candidates: int = 1) -> int:
    """How many samples show, if no decision changes at all, that at most the tolerated share does.

    Example:
        >>> samples_needed(Tolerance("task"))
        149
    """
    level = (1 - tolerance.confidence) / max(1, candidates)
    if not 0 < tolerance.decisions < 1:
        return 1
    return math.ceil(math.log(level) / math.log1p(-tolerance.decisions))


class Refutation:
    """Whether a candidate fails whatever it answers to the rest of the data, told batch by batch.

    Example:
        >>> plain = Answers(torch.zeros(300, dtype=torch.long))
        >>> refutation = Refutation(plain, Tolerance("task"))
        >>> refutation.add(torch.zeros(64, dtype=torch.long))
        ''
        >>> refutation.add(torch.ones(64, dtype=torch.long)).partition(":")[0]
        'the decisions of 64 of the first 128 samples change'
    """

    def __init__(self, plain: Answers, tolerance: Tolerance, candidates: int = 1) -> None:
        self.known, self.tolerance = plain.decisions, tolerance
        self.level = (1 - tolerance.confidence) / max(1, candidates)
        self.done = 0
        total = 0 if self.known is None else len(self.known)
        self.shares = torch.zeros(total, dtype=torch.float64)
        self.counts = torch.zeros(total, dtype=torch.bool)
        if self.known is not None and total:
            self.counts = (self.known != LEFT_OUT).reshape(total, -1).any(1)

    def add(self, decisions: Tensor) -> str:
        """Why it fails, after the decisions of one batch more; empty where it may still pass."""
        start, self.done = self.done, self.done + len(decisions)
        if self.known is None or self.done >= len(self.known):
            return ""
        known = self.known[start : self.done]
        if decisions.shape != known.shape:
            return ""
        rows = self.counts[start : self.done]
        if bool(rows.any()):
            self.shares[start : self.done][rows] = _changed_shares(known, decisions)
        shares = self.shares[self.counts]
        drawn = int(_drawn(shares).sum())
        bound = _upper(drawn, len(shares), self.level) if len(shares) else 0.0
        if bound <= self.tolerance.decisions or not drawn:  # without a change, there are too few samples
            return ""
        allowed = f"{100 * self.tolerance.decisions:g} %"
        told = (
            f"the decisions of {float(shares.sum()):.3g} of the first {self.done} samples change: of all "
            f"{len(self.known)} it could be {100 * bound:.2g} % (allowed {allowed})"
        )
        if drawn > self.tolerance.decisions * self.done:
            return told
        return f"{told}; {_enough(drawn, self.level, self.tolerance.decisions)} samples could show that it is less"


def verify_task(plain: Answers, candidate: Answers, tolerance: Tolerance, *, candidates: int = 1) -> Verification:
    """Whether a candidate decides as the plain model does, and its metrics are as good, on the user's data.

    Every bound is one-sided and holds at the tolerance's confidence for all `candidates` together (Bonferroni): a
    Clopper-Pearson bound of the share of changed decisions; for a proportion the difference of two such bounds, for
    other metrics the bootstrap of the paired differences. All have to hold, so none is corrected for the others.

    Raises:
        UsageError: there are neither decisions nor metrics, or the two do not hold the same samples.
        MissingExtraError: scipy is not installed.
    """
    level = (1 - tolerance.confidence) / max(1, candidates)
    if plain.decisions is None and not plain.figures:
        raise UsageError(
            "tolerance 'task' finds neither decisions nor a metric to compare",
            expected="class scores, whole numbers, or a metric",
            fix="metric='mean absolute error'; in a task file metrics = ['mean absolute error']",
        )
    if candidate.refuted:
        return Verification(accepted=False, reason=candidate.refuted, strength="task-equal", margin=math.inf)
    if (plain.decisions is None) != (candidate.decisions is None) or plain.figures.keys() != candidate.figures.keys():
        raise UsageError("the answers of the two models are of different kinds", expected="the same task for both")
    said: list[str] = []
    faults: list[str] = []
    margin, count = 0.0, 0
    if plain.decisions is not None and candidate.decisions is not None:
        shares = _changed_shares(plain.decisions, candidate.decisions)
        count = len(shares)
        bound = _share_bound(shares, level)
        margin = max(margin, bound / max(tolerance.decisions, 1e-12))
        text = f"{100 * float(shares.mean()):.2g} % of decisions change, at most {100 * bound:.2g} %"
        if bound > tolerance.decisions and not bool(shares.any()):
            text += f"; {samples_needed(tolerance, candidates)} samples without a change would do, {count} were given"
        (said if bound <= tolerance.decisions else faults).append(text)
    for name, figure in plain.figures.items():
        other = candidate.figures[name]
        if len(figure.values) != len(other.values):
            raise UsageError(f"{name} has {len(figure.values)} values of the one and {len(other.values)} of the other")
        count = max(count, len(figure.values))
        if _never_differ(figure, other) and len(figure.values) < (needed := samples_needed(tolerance, candidates)):
            margin = math.inf
            faults.append(f"{name} moves on none of {len(figure.values)} samples, of which {needed} would tell")
            continue
        loss = _loss_bound(figure, other, level)
        margin = max(margin, loss / max(tolerance.metric_loss, 1e-12)) if math.isfinite(loss) else math.inf
        text = f"{name} loses at most {100 * loss:.2g} %" if math.isfinite(loss) else f"{name} is not finite"
        (said if loss <= tolerance.metric_loss else faults).append(text)
    allowed = f" (allowed {100 * tolerance.decisions:g} % and {100 * tolerance.metric_loss:g} %)"
    faults += [
        f"output {name} is off by {100 * far:.2g} % of its size (allowed {100 * _NEAR:g} %)"
        for name, values in plain.others.items()
        if (far := _distance(values, candidate.others.get(name))) > _NEAR
    ]
    return Verification(
        accepted=not faults,
        reason="; ".join(faults or said) + (allowed if faults else f" at {100 * tolerance.confidence:g} % confidence"),
        strength="task-equal",
        margin=margin,
        samples=count,
        probes=count,
    )


def _changed_shares(plain: Tensor, candidate: Tensor) -> Tensor:
    """The share of each sample's decisions that changes. Shapes: `(N,)`."""
    if plain.shape != candidate.shape or not plain.dim() or not len(plain):
        raise UsageError(
            f"decisions of shape {tuple(candidate.shape)} against {tuple(plain.shape)}",
            expected="the same shape (N, ...), with at least one sample",
        )
    counted = (plain != LEFT_OUT).cpu().reshape(len(plain), -1)
    changed = (plain.cpu() != candidate.cpu()).reshape(len(plain), -1) & counted
    kept = counted.any(1)
    if not bool(kept.any()):
        raise UsageError("the data hold no decision that counts", expected="targets that do not ignore all positions")
    return changed[kept].double().sum(1) / counted[kept].double().sum(1)


def _never_differ(plain: Figure, candidate: Figure) -> bool:
    """Whether a figure that is no proportion is moved alike in all samples: then nothing tells how it scatters."""
    if plain.aggregate is Aggregate.PROPORTION:
        return False
    lost = candidate.values.astype(np.float64) - plain.values.astype(np.float64)
    return bool((lost == lost[0]).all()) if len(lost) else False


def _distance(plain: Tensor, candidate: Tensor | None) -> float:
    """The root of the squared differences over that of the values; infinite where another kind of value stands."""
    if candidate is None or candidate.shape != plain.shape:
        return math.inf
    if not plain.is_floating_point() and not plain.is_complex():
        return float((plain != candidate).double().mean()) if plain.numel() else 0.0
    one, other = plain.to(torch.complex128), candidate.to(torch.complex128)
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return math.inf
    size = float(one[finite].abs().square().sum().sqrt())
    gap = float((one[finite] - other[finite]).abs().square().sum().sqrt())
    return gap / size if size else gap


def _share_bound(shares: Tensor, level: float) -> float:
    """The upper bound of the mean share. A share between 0 and 1 becomes one of them by a draw of that probability.

    The draw keeps the mean, and makes the exact bound of a proportion a bound of any mean between 0 and 1; it has a
    random stream of its own, always the same.
    """
    return _upper(int(_drawn(shares).sum()), len(shares), level)


def _drawn(shares: Tensor) -> Tensor:
    return torch.rand(len(shares), generator=torch.Generator().manual_seed(0), dtype=torch.float64) < shares


def _enough(count: int, level: float, share: float) -> int:
    """Of how many samples so few show that the share is at most `share`."""
    most = max(2 * count, 1)
    while _upper(count, most, level) > share:
        most *= 2
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if _upper(count, middle, level) > share else (least, middle)
    return most


def _upper(count: int, total: int, level: float) -> float:
    return _known(proportion_interval(count, total, 1 - 2 * level).high)


def _lower(count: int, total: int, level: float) -> float:
    return _known(proportion_interval(count, total, 1 - 2 * level).low)


def _known(bound: float | None) -> float:
    if bound is None:
        raise MissingExtraError(
            "tolerance 'task' needs scipy for its bounds", fix="pip install 'evalmode[evaluate]'", explain="faithful"
        )
    return bound


def _loss_bound(plain: Figure, candidate: Figure, level: float) -> float:
    """The upper bound of what the metric loses; of the worse side where it is unknown which one is better."""
    if plain.higher_is_better is None:
        return max(_one_sided_loss(plain, candidate, level, 1.0), _one_sided_loss(plain, candidate, level, -1.0))
    return _one_sided_loss(plain, candidate, level, 1.0 if plain.higher_is_better else -1.0)


def _one_sided_loss(plain: Figure, candidate: Figure, level: float, sign: float) -> float:
    before, after = plain.values, candidate.values
    if plain.aggregate is Aggregate.PROPORTION:
        right, still = before.astype(np.bool_), after.astype(np.bool_)
        worse, better = (right & ~still, ~right & still) if sign > 0 else (~right & still, right & ~still)
        total = len(right)
        return _upper(int(worse.sum()), total, level / 2) - _lower(int(better.sum()), total, level / 2)
    first, second = before.astype(np.float64), after.astype(np.float64)
    lost = (first - second) * sign
    if not bool(np.isfinite(lost).all()):
        return math.inf
    value = exact_mean(first)
    most = float(lost[0]) if bool((lost == lost[0]).all()) else _known(mean_interval(lost, 1 - 2 * level).high)
    if plain.aggregate is Aggregate.ROOT_MEAN:
        root = math.sqrt(max(value, 0.0))
        return sign * (root - math.sqrt(max(value - sign * most, 0.0))) / max(root, 1e-300)
    return most / max(abs(value), 1e-300)
