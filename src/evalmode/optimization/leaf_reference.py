"""What one output should be, and how far the plain model's own rounding carries it from there."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

__all__ = ["JUMP", "LeafReference", "RowErrors", "kinds_of_value", "most_likely_unseen", "row_errors"]

JUMP = 1e-3
"""A sample whose error is beyond this share of its output's scale has not been rounded: it has taken another branch."""

HALF_JUMP = 0.3  # the same, for an output of a type with 8 or 11 bits
_FAR = 1e3  # times the usual values: what a mask fills in is further off
_CONSTANTS = 8
_SAMPLED = 4096  # values of a row that its median is taken of
_NEGLIGIBLE = 1e-12  # of an output's usual scale: what is smaller is zero, denormal numbers among it
_TINY = 2.0**20  # times the smallest normal number: what a plan that flushes denormal numbers may lose


@dataclasses.dataclass(frozen=True, slots=True)
class RowErrors:
    """The distance from the reference, row by row: the largest, the root mean square and the median.

    Shapes: `(rows,)` each.
    """

    largest: Tensor
    root_mean_square: Tensor
    median: Tensor


@dataclasses.dataclass(slots=True)
class LeafReference:
    """One output in fp64, a flat row for each sample (one row for each part where it belongs to none).

    `agreed` marks the values of which all plain runs tell the same as fp64: the same whole number, or for a floating
    output the same kind of value (a number, NaN, an infinity). `ordinary` marks the rows that are like the user's data.
    `missed` counts in how many of the `runs` distinct plain runs a row (of whole numbers: a value) was another one.
    `plain` are the errors of runs as they are, `moved` of those with every result moved by a rounding.

    `scale` is the largest magnitude of a row, without what marks places that are ruled out (-1e9 in a mask).

    Shapes: `wide`, `agreed` `(rows, values)`; `ordinary`, `scale` `(rows,)`; `noise` `(values,)`.
    """

    name: str
    axis: int | None
    dtype: torch.dtype
    shape: tuple[int, ...]
    wide: Tensor
    ordinary: Tensor
    agreed: Tensor = dataclasses.field(init=False)
    scale: Tensor = dataclasses.field(init=False)
    noise: Tensor = dataclasses.field(init=False)
    missed: Tensor = dataclasses.field(init=False)
    runs: int = 0
    plain: list[RowErrors] = dataclasses.field(default_factory=list)
    moved: list[RowErrors] = dataclasses.field(default_factory=list)
    _finite: bool = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.agreed = torch.ones(self.wide.shape, dtype=torch.bool)
        rows, values = self.wide.shape
        self._finite = bool(self.wide.isfinite().all()) if self.floating else True
        finite = torch.where(self.wide.isfinite(), self.wide, 0.0).abs() if self.floating else self.wide.double().abs()
        self.scale = _largest(finite, self.dtype) if values else torch.zeros(rows, dtype=torch.float64)
        self.noise = torch.zeros(values if self.floating else 0, dtype=torch.float64)
        self.missed = torch.zeros(rows, dtype=torch.int16) if self.floating else torch.zeros_like(self.wide).short()

    @property
    def floating(self) -> bool:
        """Whether it is compared by distance; whole numbers and booleans are equal or not."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    @property
    def unit(self) -> float:
        """One unit in the last place of a number near 1."""
        return torch.finfo(self.dtype).eps

    @property
    def jump(self) -> float:
        """The share of the scale beyond which a row has taken another branch."""
        return JUMP if self.unit < 1e-4 else HALF_JUMP

    @property
    def usual_scale(self) -> float:
        """The median scale of the rows that look like the user's data."""
        rows = self.scale[self.ordinary] if bool(self.ordinary.any()) else self.scale
        return float(rows.median()) if rows.numel() else 0.0

    def add_run(self, values: Tensor, *, moved: bool = False) -> None:
        """Take in a run of the plain model, as it is or with every result moved by a rounding.

        Shapes: `(rows, values)`.
        """
        if not self.floating:
            wrong = values != self.wide
            self.agreed &= ~wrong
            self.missed += wrong
            self.runs += 1
            return
        if not (self._finite and bool(values.isfinite().all())):
            self.agreed &= kinds_of_value(values) == kinds_of_value(self.wide)
        gaps = gap(values, self.wide)
        errors = row_errors(gaps)
        (self.moved if moved else self.plain).append(errors)
        jumped = self.jumped(errors.largest)
        self.missed += jumped
        self.runs += 1
        calm = self.ordinary & ~jumped
        if bool(calm.any()):
            self.noise = torch.maximum(self.noise, gaps[calm].amax(0)) if gaps.shape[1] else self.noise

    def jumped(self, largest: Tensor, rows: Tensor | None = None) -> Tensor:
        """Which rows have taken another branch, by their largest errors."""
        scale = self.scale if rows is None else self.scale[rows]
        return largest > self.jump * scale.clamp(min=_NEGLIGIBLE * self.usual_scale) + self.negligible

    @property
    def discontinuous(self) -> Tensor:
        """The rows that took another branch in at least one plain run. Shapes: `(rows,)`."""
        return self.missed > 0 if self.floating else (self.missed > 0).any(1)

    @property
    def negligible(self) -> float:
        """What is no error at any scale."""
        kind = self.dtype if not self.dtype.is_complex else torch.float32
        return max(_NEGLIGIBLE * self.usual_scale, torch.finfo(kind).tiny * _TINY if self.unit < 1e-4 else 0.0)

    def own(self, which: str) -> Tensor:
        """The plain model's own error of each row, over its runs, but not below what is usual at that row's scale.

        Shapes: `(rows,)`.
        """
        worst = _worst([*self.plain, *self.moved], which)
        return torch.maximum(worst, self.usual(which) * self.scale)

    def usual(self, which: str, *, as_it_is: bool = False) -> float:
        """The plain model's error as a share of the scale: the upper tenth of the rows like the user's data.

        With `as_it_is`, of its runs without moved results alone.
        """
        calm = self.ordinary & ~self.discontinuous & (self.scale > 0)
        if not bool(calm.any()):
            return 0.0
        worst = _worst(self.plain if as_it_is else [*self.plain, *self.moved], which)
        return float((worst[calm] / self.scale[calm]).quantile(0.9))

    def typical(self, errors: Tensor, rows: Tensor) -> float:
        """The median of errors over `rows`, as a share of the scale: it scatters least, and jumps do not reach it."""
        chosen = rows & (self.scale > 0)
        return float((errors[chosen] / self.scale[chosen]).median()) if bool(chosen.any()) else 0.0

    def floor(self, units: float) -> Tensor:
        """What is allowed whatever the plain model's own error is. Shapes: `(rows,)`."""
        coarse = min(units, 2.0) if self.unit > 1e-4 else units
        return coarse * self.unit * self.scale.clamp(min=1e-6 * self.usual_scale) + self.negligible

    def unseen(self) -> int:
        """How many rows (of whole numbers: values) may take another branch that no plain run has shown."""
        return most_likely_unseen(int((self.missed == 1).sum()), self.runs)


def _largest(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest magnitude of each row. Constants that a mask fills in count only in rows that hold nothing else:
    beside them an error of any size would be small.

    Such a constant is far beyond the usual values, occurs more than once, and is exact in `dtype`: it is not computed.
    """
    largest = sizes.amax(1)
    step = -(-sizes.numel() // _SAMPLED) or 1
    usual = float(sizes.reshape(-1)[::step].median())
    far = sizes >= _FAR * max(usual, 1e-300)
    if dtype.is_complex or not usual or not bool(far.any()) or float(far.double().mean()) > 0.5:
        return largest
    values, counts = sizes[far].unique(return_counts=True)
    constants = values[(counts > 1) & (values.to(dtype).double() == values)]
    if not 0 < len(constants) <= _CONSTANTS:
        return largest
    rest = sizes.masked_fill(torch.isin(sizes, constants), 0.0).amax(1)
    return torch.where(rest > 0, rest, largest)


def _worst(errors: list[RowErrors], which: str) -> Tensor:
    return torch.stack([getattr(run, which) for run in errors]).amax(0)


def kinds_of_value(values: Tensor) -> Tensor:
    """Of each value 0 for a number, 1 for NaN, 2 and 3 for the infinities.

    Example:
        >>> kinds_of_value(torch.tensor([1.0, float("nan"), float("inf"), float("-inf")])).tolist()
        [0, 1, 2, 3]
    """
    kinds = values.isnan().to(torch.int8)
    kinds += 2 * (values == torch.inf).to(torch.int8)
    kinds += 3 * (values == -torch.inf).to(torch.int8)
    return kinds


def gap(values: Tensor, wide: Tensor) -> Tensor:
    """The distance of each value from its reference; 0 where one of them is no finite number."""
    apart = values.double() if values.dtype != torch.float64 else values.clone()
    return apart.sub_(wide).abs_().nan_to_num_(nan=0.0, posinf=0.0)


def row_errors(gaps: Tensor) -> RowErrors:
    """The errors of each row.

    Shapes: `(rows, values)`.
    """
    rows, values = gaps.shape
    if not values:
        nothing = torch.zeros(rows, dtype=torch.float64)
        return RowErrors(nothing, nothing, nothing)
    largest = gaps.amax(1)
    safe = largest.clamp(min=1e-300)
    mean = (gaps / safe[:, None]).square_().mean(1).sqrt() * largest  # scaled: squares of tiny errors would vanish
    some = gaps[:, :: -(-values // _SAMPLED)]
    return RowErrors(largest, mean, some.median(1).values)


def most_likely_unseen(seen_once: int, runs: int) -> int:
    """How many events that no run has shown another run may show, at 99.9 %, of those that were seen in one run alone.

    Example:
        >>> most_likely_unseen(0, 4), most_likely_unseen(4, 4)
        (0, 5)

    Source: Good, "The population frequencies of species and the estimation of population parameters", Biometrika 40
    (1953): the share of what is unseen is the share of what was seen once. The count is taken as Poisson.
    """
    if not seen_once or not runs:
        return 0
    expected = seen_once / runs
    if expected > 500:
        return math.ceil(expected + 3.1 * math.sqrt(expected))
    term = total = math.exp(-expected)
    count = 0
    while total < 0.999:
        count += 1
        term *= expected / count
        total += term
    return count
