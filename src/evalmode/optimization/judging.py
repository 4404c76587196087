"""One output of one candidate, execution by execution: what is allowed, what was seen, and the first fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from evalmode.optimization.leaf_reference import LeafReference, gap, kinds_of_value, row_errors
from evalmode.optimization.samples import rows_of
from evalmode.optimization.tolerance import Tolerance

__all__ = ["Fault", "LeafJudge"]

FEWEST_ROWS = 8  # below this many rows like the user's data, the noise of a single value is not known well enough
SINGLE_VALUE = 4.0  # times the multiple: the noise of one value over a few samples scatters more than that of a row
TYPICAL = 0.75  # times the multiple: the error of the sample in the middle scatters less than that of each sample
_FEWEST_JUMPS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong: in which output and row of the reference, and at which position of the execution.

    `share` is the error as a share of what is allowed. `jump` says that another branch may have been taken.
    """

    what: str
    row: int = 0
    position: int = -1
    leaf: int = 0
    where: str = ""
    share: float = 1.0
    jump: bool = False


class LeafJudge:
    """Compares one output of a candidate with its reference.

    Largest and root-mean-square error of every sample are at most a multiple of what plain fp32 makes at that sample,
    or usually makes at that scale. So is the error of the sample in the middle, which finds a small fault in all of
    them, and that of every single value over all samples like the user's data, which finds a fault in a channel of
    small values beside large ones. Whole numbers are equal, and NaN and infinities in place, wherever plain fp32 and
    fp64 agree.
    """

    def __init__(self, leaf: LeafReference, tolerance: Tolerance) -> None:
        self.leaf = leaf
        self.tolerance = tolerance
        self.margin = 0.0
        self.discontinuous = leaf.discontinuous
        self._pardoned = torch.zeros(len(leaf.wide), dtype=torch.bool)
        self._allowed_unseen = leaf.unseen()
        if not leaf.floating:
            self._unlike = torch.zeros(leaf.wide.shape, dtype=torch.bool)
            return
        own, floor = leaf.own("largest"), leaf.floor(tolerance.floor)
        if bool(self.discontinuous.any()):  # any of them may jump as far as the farthest one
            farthest = float((own / leaf.scale.clamp(min=leaf.negligible or 1e-300))[self.discontinuous].max())
            own = torch.where(self.discontinuous, torch.maximum(own, farthest * leaf.scale), own)
        self._allowed = torch.maximum(tolerance.multiple * own, floor)
        mean = torch.where(self.discontinuous, own, leaf.own("root_mean_square"))
        self._allowed_mean = torch.maximum(tolerance.multiple * mean, floor / 2)
        self._values = torch.zeros(leaf.wide.shape[1], dtype=torch.float64)
        self._largest, self._mean, self._median = torch.zeros(3, len(leaf.wide), dtype=torch.float64)
        self._jumped, self._seen = torch.zeros(2, len(leaf.wide), dtype=torch.bool)

    def look_at(self, output: Tensor, rows: Tensor) -> list[Fault]:
        """The faults of one execution, whose positions hold `rows` of the reference; at most one for each row."""
        leaf = self.leaf
        if output.dtype != leaf.dtype:
            return [Fault(f"its type is {_short(output.dtype)} instead of {_short(leaf.dtype)}", row=int(rows[0]))]
        shape = list(output.shape)
        expected = list(leaf.shape)
        if leaf.axis is not None:
            expected.insert(leaf.axis, len(rows))
        if shape != expected:
            return [Fault(f"its shape is {shape} instead of {expected}", row=int(rows[0]))]
        values = rows_of(output, leaf.axis)
        if not leaf.floating:
            return list(self._whole_numbers(values, rows))
        return list(self._floating(values, rows))

    def pardon(self, row: int) -> None:
        """Take a row for discontinuous: the plain model has been seen to jump there."""
        self._pardoned[row] = True
        if not self.leaf.floating:
            self._unlike[row] = False

    @property
    def apart(self) -> Tensor:
        """The rows that were not compared by value. Shapes: `(rows,)`."""
        return self.discontinuous | self._pardoned

    def over_all(self) -> Fault | None:
        """What only all executions together show."""
        if not self.leaf.floating:
            return None
        return self._jumps_alike() or self._typical_errors() or self._single_values()

    @property
    def usual_error(self) -> float:
        """The error of the rows like the user's data: the upper tenth, as a share of the scale."""
        calm = self._calm() & self._seen
        if not bool(calm.any()):
            return 0.0
        return float((self._largest[calm] / self.leaf.scale[calm]).quantile(0.9))

    @property
    def plain_error(self) -> float:
        """The same of plain fp32."""
        return self.leaf.usual("largest", as_it_is=True)

    @property
    def ratio(self) -> float:
        """How many times the one is the other; 0 where both are below the unit in the last place."""
        least = self.leaf.unit / 8
        return self.usual_error / max(self.plain_error, least) if self.usual_error > least else 0.0

    def _whole_numbers(self, values: Tensor, rows: Tensor) -> Iterator[Fault]:
        wrong = (values != self.leaf.wide[rows]) & self.leaf.agreed[rows] & ~self._pardoned[rows][:, None]
        if not bool(wrong.any()):
            return
        for position in wrong.any(1).nonzero()[:, 0].tolist():
            self._unlike[rows[position]] |= wrong[position]
        count = int(self._unlike.sum())
        if count > self._allowed_unseen:
            share = count / max(self._allowed_unseen, 0.5)
            for position in wrong.any(1).nonzero()[:, 0].tolist():
                which = int(wrong[position].nonzero()[0, 0])
                got, want = values[position, which].item(), self.leaf.wide[rows[position], which].item()
                yield Fault(f"{got} instead of {want}", int(rows[position]), position, share=share, jump=True)

    def _floating(self, values: Tensor, rows: Tensor) -> Iterator[Fault]:
        leaf = self.leaf
        wide, agreed = leaf.wide[rows], leaf.agreed[rows]
        strange = (kinds_of_value(values) != kinds_of_value(wide)).logical_and_(agreed)
        gaps = gap(values, wide).masked_fill_(~agreed, 0.0)
        errors = row_errors(gaps)
        share = torch.maximum(
            _share(errors.largest, self._allowed[rows]), _share(errors.root_mean_square, self._allowed_mean[rows])
        )
        jumped = leaf.jumped(errors.largest, rows) & ~self.apart[rows]
        calm = leaf.ordinary[rows] & ~self.apart[rows] & ~jumped
        if bool(calm.any()) and gaps.shape[1]:
            self._values = torch.maximum(self._values, gaps[calm].amax(0))
        self._seen[rows] = True
        for position, row in enumerate(rows.tolist()):
            self._largest[row] = torch.maximum(self._largest[row], errors.largest[position])
            self._mean[row] = torch.maximum(self._mean[row], errors.root_mean_square[position])
            self._median[row] = torch.maximum(self._median[row], errors.median[position])
            if bool(strange[position].any()):
                yield Fault(_strangeness(values[position], wide[position], strange[position]), row, position)
            elif bool(jumped[position]) and self._allowed_unseen:
                self._jumped[row] = True
            elif share[position] > 1.0 and not self._pardoned[row]:
                relative = float(errors.largest[position] / leaf.scale[row].clamp(min=1e-300))
                what, jump = _too_far(relative, float(share[position])), bool(jumped[position])
                yield Fault(what, row, position, share=float(share[position]), jump=jump)
            elif not self._pardoned[row]:
                self.margin = max(self.margin, float(share[position]))

    def _jumps_alike(self) -> Fault | None:
        """Samples that take another branch do so as often as between plain runs, and the rest of them stays."""
        leaf, count = self.leaf, int(self._jumped.sum())
        if count > self._allowed_unseen:
            return Fault(
                f"{count} samples take another branch that no plain run takes; {self._allowed_unseen} can be by chance",
                int(self._jumped.nonzero()[0, 0]),
            )
        found = self.discontinuous & leaf.ordinary & (leaf.scale > 0)
        if int(found.sum()) < _FEWEST_JUMPS:
            return None
        own = max(leaf.typical(errors.median, found) for errors in (*leaf.plain, *leaf.moved))
        allowed = max(self.tolerance.multiple * own, self.tolerance.floor * leaf.unit, 1e-300)
        error = leaf.typical(self._median, found)
        self.margin = max(self.margin, error / allowed)
        if error <= allowed:
            return None
        return Fault(f"discontinuous samples: {_too_far(error, error / allowed)}", int(found.nonzero()[0, 0]))

    def _typical_errors(self) -> Fault | None:
        """The root mean square of the sample in the middle: small faults everywhere, which no single sample shows."""
        leaf, calm = self.leaf, self._calm()
        count = int(calm.sum())
        if not count:
            return None
        own = max(leaf.typical(errors.root_mean_square, calm) for errors in leaf.plain)
        multiple = TYPICAL * self.tolerance.multiple * (1 + count**-0.5)
        allowed = max(multiple * own, self.tolerance.floor / 16 * leaf.unit, 1e-300)
        error = leaf.typical(self._mean, calm)
        self.margin = max(self.margin, error / allowed if error else 0.0)
        if error <= allowed:
            return None
        return Fault(f"typical samples: {_too_far(error, error / allowed)}", int(calm.nonzero()[0, 0]))

    def _single_values(self) -> Fault | None:
        """Each value over all samples like the user's data: a fault in a small one hides beside large ones."""
        leaf, calm = self.leaf, self._calm()
        if int(calm.sum()) < FEWEST_ROWS or not leaf.wide.shape[1]:
            return None
        wide = leaf.wide[calm]
        scale = torch.where(wide.isfinite(), wide, 0.0).abs().amax(0)
        coarse = min(self.tolerance.floor, 2.0) if leaf.unit > 1e-4 else self.tolerance.floor
        floor = coarse * leaf.unit * scale + leaf.negligible
        allowed = torch.maximum(SINGLE_VALUE * self.tolerance.multiple * leaf.noise, floor)
        share = _share(self._values, allowed)
        worst = int(share.argmax())
        self.margin = max(self.margin, float(share[worst]))
        if share[worst] <= 1.0:
            return None
        relative = float(self._values[worst] / scale[worst].clamp(min=1e-300))
        place = list(_unraveled(worst, leaf.shape))
        return Fault(f"value {place}: {_too_far(relative, float(share[worst]))}", int(calm.nonzero()[0, 0]))

    def _calm(self) -> Tensor:
        usable: Tensor = self.leaf.ordinary & ~self.apart & ~self._jumped & (self.leaf.scale > 0)
        return usable


def _share(errors: Tensor, allowed: Tensor) -> Tensor:
    """Errors as a share of what is allowed; no error is none of it, even where nothing is allowed."""
    return torch.where(errors == 0, errors, errors / allowed.clamp(min=1e-300))


def _too_far(relative: float, share: float) -> str:
    return f"error {relative:.1e} of its scale, {share:.3g}x what is allowed"


def _strangeness(values: Tensor, wide: Tensor, strange: Tensor) -> str:
    which = int(strange.nonzero()[0, 0])
    count = int(strange.sum())
    more = f" ({count} of {len(values)} values)" if count > 1 else ""
    return f"{float(values[which]):.3g} where the model gives {float(wide[which]):.3g}{more}"


def _unraveled(flat: int, shape: tuple[int, ...]) -> list[int]:
    found: list[int] = []
    for length in reversed(shape):
        flat, place = divmod(flat, length) if length else (flat, 0)
        found.append(place)
    return found[::-1]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
