"""The score interval of the difference of two paired proportions: it holds for few samples, and where none differs."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["PairedProportions"]


@dataclass(frozen=True, slots=True)
class PairedProportions:
    """`only_a` of `total` samples that only a got right, `only_b` that only b did; the difference is b minus a.

    Example:
        >>> found = PairedProportions(5, 12, 100)
        >>> round(found.end(0.025), 3), round(found.end(0.975), 3)
        (-0.012, 0.157)

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Stat. Med. 17 (1998), equations 9 to 14.
    """

    only_a: int
    only_b: int
    total: int

    @property
    def method(self) -> str:
        """How the interval is made."""
        return "Tango's score interval"

    def end(self, tail: float) -> float:
        """The bound below which the difference lies at that one-sided level."""
        from scipy.optimize import brentq

        if self.tail(-1.0) >= tail:
            return -1.0
        if self.tail(1.0) <= tail:
            return 1.0
        return float(brentq(lambda at: self.tail(at) - tail, -1.0, 1.0, xtol=1e-12))

    def tail(self, at: float) -> float:
        """The one-sided level whose bound is `at`."""
        from scipy.stats import norm

        return float(norm.cdf(-self._score(at)))

    def _score(self, at: float) -> float:
        """How many standard errors the difference seen lies above `at`, were that the true one."""
        if not -1 < at < 1:
            return math.inf if at <= -1 else -math.inf
        above = self.only_b - self.only_a - self.total * at
        # The likeliest share that only a gets right, were the difference `at`.
        square = 2 * self.total
        linear = (2 * self.total - self.only_b + self.only_a) * at - self.only_a - self.only_b
        constant = -self.only_a * at * (1 - at)
        share = (math.sqrt(max(0.0, linear**2 - 4 * square * constant)) - linear) / (2 * square)
        variance = self.total * (2 * share + at * (1 - at))
        if variance <= 0:
            return 0.0 if above == 0 else math.copysign(math.inf, above)
        return above / math.sqrt(variance)
