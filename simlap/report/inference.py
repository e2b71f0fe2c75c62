"""What else paired differences show: effect size, bootstrap interval, permutation test, equivalence, normality (all scipy's).

The paired t test and its interval come first (`simlap.report.stats`); these stand beside it. Every function takes the differences
seed by seed. Differences without any spread have no distribution: what can still be said of them is said, the rest is None.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy import special, stats

from simlap.report.stats import CONFIDENCE

Values: TypeAlias = "Sequence[float] | np.ndarray[Any, np.dtype[np.float64]]"
SIGN_FLIP_SEEDS = 8
"""Fewest seeds of the permutation test: with n, its p-value is never below 2^(1 - n), which is 0.0625 for 5 and 0.0078 for 8."""
BCA_SEEDS = 3
"""Fewest seeds of a bootstrap interval."""
BCA_COVERAGE = {3: 72, 5: 84, 8: 89, 10: 90, 20: 93}
"""Seeds -> how often, in percent, a nominal 95 % BCa interval covers the mean of normal differences, as simulated
(tests/unit/report/test_coverage.py). t intervals cover 95 % there."""
_ROUNDING = 1e-12
"""Differences that agree to this share agree up to rounding."""
_RESAMPLES = 9_999
_SIGNS = 2**15
"""Up to so many sign patterns are all looked at (15 seeds); of more, so many at random."""
_SEED = 20_240_901
"""Of the bootstrap and of random sign patterns: the same differences give the same numbers."""


def effect_size(differences: Values) -> float | None:
    """Hedges' g of paired differences: their mean in standard deviations (Cohen's d_z), corrected for its bias in few seeds.

    The correction is exact, gamma(df / 2) / (sqrt(df / 2) gamma((df - 1) / 2)) with df = n - 1 (Hedges 1981). None with fewer
    than three differences, or where they have no spread.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.size < 3 or not _spread(d):
        return None
    df = d.size - 1
    log_gammas = special.gammaln(df / 2) - special.gammaln((df - 1) / 2)
    return float(math.exp(log_gammas) / math.sqrt(df / 2) * d.mean() / d.std(ddof=1))


def bca(
    values: Values, statistic: Callable[..., Any] = np.mean, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987) of the mean, or of another statistic.

    With few seeds it is too narrow (`BCA_COVERAGE`). None below `BCA_SEEDS` values, or where they have no spread.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size < BCA_SEEDS or not _spread(x):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # answered below
        found = stats.bootstrap(
            (x,), statistic, n_resamples=_RESAMPLES, confidence_level=confidence, method="BCa",
            rng=np.random.default_rng(_SEED),
        ).confidence_interval  # fmt: skip
    low, high = float(found.low), float(found.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def sign_flip(differences: Values) -> float | None:
    """Two-sided p-value of the sign-flip permutation test of the mean (Fisher 1935); None below `SIGN_FLIP_SEEDS` differences.

    It assumes only that each difference is as likely to have the other sign, and no normal distribution.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.size < SIGN_FLIP_SEEDS:
        return None
    found = stats.permutation_test(
        (d, np.zeros_like(d)), _mean_difference, permutation_type="samples", vectorized=True, n_resamples=_SIGNS,
        rng=np.random.default_rng(_SEED),
    )  # fmt: skip
    return float(found.pvalue)


def exceeds(differences: Values, margin: float) -> float | None:
    """One-sided p-value of H0: the mean difference is at most `margin` (t test); None for a single difference.

    Without any spread it is 0 or 1, as the differences lie above the margin or not.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.size < 2:
        return None
    if not _spread(d):
        room = float(d.mean()) - margin  # 0.51 - 0.5 is more than 0.01 by rounding, and no more than it
        return 0.0 if room > _ROUNDING * max(abs(margin), float(np.abs(d).max())) else 1.0
    return float(stats.ttest_1samp(d, margin, alternative="greater").pvalue)


def equivalence(differences: Values, margin: float) -> float | None:
    """p-value of H0: the mean difference lies outside (-margin, margin); the larger of two one-sided ones (Schuirmann 1987)."""
    below, above = exceeds(differences, -margin), exceeds([-d for d in differences], -margin)
    return None if below is None or above is None else max(below, above)


def normality(differences: Values) -> float | None:
    """p-value of the Shapiro-Wilk test; None with fewer than three differences, or where they have no spread."""
    d = np.asarray(differences, dtype=np.float64)
    if d.size < 3 or not _spread(d):
        return None
    return float(stats.shapiro(d).pvalue)


def _mean_difference(x: Any, y: Any, axis: int = -1) -> Any:
    return np.mean(x - y, axis=axis)


def _spread(d: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    return float(np.ptp(d)) > _ROUNDING * float(np.abs(d).max())
