"""Means and paired differences over seeds (scipy), and Holm's adjustment over a family of tests (statsmodels).

What else the differences show is in `simlap.report.inference`.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
"""Level of every interval in the report."""
ALPHA = 1.0 - CONFIDENCE
"""An adjusted p-value below it counts as a difference."""
_EQUAL = 1e-12
"""Differences that agree to this share of the values' size agree up to rounding."""


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds with its t interval."""

    n: int
    mean: float
    std: float | None = None
    """Sample standard deviation (n - 1); None for one seed."""
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True)
class Paired:
    """Mean of the differences, seed by seed, with its t interval and the two-sided p-value of `mean = 0`."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    """Holm over the family the comparison belongs to."""
    differences: tuple[float, ...] = ()
    """Seed by seed; empty where only their summary is known (a race's)."""

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean

    @property
    def significant(self) -> bool:
        return self.p_adjusted is not None and self.p_adjusted < ALPHA


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and 95 % t interval of finite `values` (at least one)."""
    x = _finite(values)
    mean = float(x.mean())
    if x.size == 1:
        return Estimate(1, mean)
    std = float(x.std(ddof=1))
    if _same(x, x):
        return Estimate(x.size, mean, 0.0, mean, mean)
    half = float(stats.t.ppf(1 - ALPHA / 2, x.size - 1) * stats.sem(x))
    return Estimate(x.size, mean, std, mean - half, mean + half)


def paired(values: Sequence[float], reference: Sequence[float]) -> Paired:
    """Paired t test of `values - reference`, one value per seed, in the same order of seeds.

    Differences that are all the same have an interval of width 0, and p = 0 or 1 as they are nonzero or zero.
    """
    x, y = _finite(values), _finite(reference)
    if x.size != y.size:
        raise ValueError(f"paired values differ in number: {x.size} and {y.size}")
    difference = x - y
    mean, each = float(difference.mean()), tuple(map(float, difference))
    if x.size == 1:
        return Paired(1, mean, differences=each)
    if _same(difference, np.concatenate([x, y])):
        zero = abs(mean) <= _EQUAL * float(np.abs(np.concatenate([x, y])).max())
        # all the same but for rounding: so they are kept
        return Paired(x.size, mean, mean, mean, 1.0 if zero else 0.0, differences=(0.0 if zero else mean,) * x.size)
    test = stats.ttest_1samp(difference, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    return Paired(
        x.size, mean, float(interval.low), float(interval.high), float(test.pvalue), differences=each
    )  # fmt: skip


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979), in the order given: adjusted p-values of one family of tests."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests  # half a second, for what is drawn once

    # it collects garbage each time, which takes a tenth of a second with all that we have loaded: nothing is to be looked at
    gc.freeze()
    try:
        return [float(p) for p in multipletests(list(p_values), method="holm")[1]]
    finally:
        gc.unfreeze()


def finite(value: float | None) -> bool:
    """Whether there is a value that can be shown."""
    return value is not None and math.isfinite(value)


def _finite(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"expected finite values, at least one, got {list(values)}")
    return x


def _same(x: np.ndarray[tuple[int], np.dtype[np.float64]], scale: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bool:
    return float(np.ptp(x)) <= _EQUAL * float(np.abs(scale).max())
