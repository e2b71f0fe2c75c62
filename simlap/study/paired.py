"""Paired differences of one look: the t test, its interval, and where the mean may end up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from scipy import special

_EQUAL = 1e-12
"""Differences that agree to this share of the values' size agree up to rounding."""


@dataclass(frozen=True)
class Pair:
    """n paired differences."""

    n: int
    mean: float
    std: float
    """Sample standard deviation (n - 1); 0 where all differences are the same."""
    p: float
    """Two-sided, of mean = 0; without any spread 0 or 1, as the differences are nonzero or zero."""

    @classmethod
    def of(cls, x: Sequence[float], y: Sequence[float]) -> Self:
        """Differences x - y of finite values, at least two."""
        # plain floats: for a few dozen values they are several times as fast as arrays
        n, difference = len(x), [a - b for a, b in zip(x, y, strict=True)]
        mean = math.fsum(difference) / n
        scale = _EQUAL * max(*map(abs, x), *map(abs, y))
        if max(difference) - min(difference) <= scale:
            return cls(n, mean, 0.0, 1.0 if abs(mean) <= scale else 0.0)
        std = math.sqrt(math.fsum((d - mean) ** 2 for d in difference) / (n - 1))
        return cls(n, mean, std, float(2 * special.stdtr(n - 1, -abs(mean) * math.sqrt(n) / std)))

    def half_width(self, level: float, n: int | None = None) -> float:
        """Half the width of the interval with coverage 1 - level, infinite at level 0; of n differences with this spread."""
        n = n or self.n
        if self.std == 0:
            return 0.0
        return math.inf if level <= 0 else float(-special.stdtrit(n - 1, level / 2)) * self.std / math.sqrt(n)

    def chance_within(self, bound: float, variance: float) -> float:
        """Predictive probability that a later mean lies in [-bound, bound], given a flat prior.

        Args:
            bound: in the metric's units; 0 where negative.
            variance: of the later mean about this one, in units of the variance of a single difference.
        """
        if bound < 0:
            return 0.0
        spread = self.std * math.sqrt(variance)
        if spread == 0:
            return 1.0 if abs(self.mean) <= bound else 0.0
        upper, lower = (bound - self.mean) / spread, (-bound - self.mean) / spread
        return float(special.stdtr(self.n - 1, upper) - special.stdtr(self.n - 1, lower))
