"""What planned seeds can show: power of the paired t test, the smallest detectable difference, and thresholds out of reach.

The paired t test of n differences with standard deviation `std` has a noncentral t distribution with n - 1 degrees of freedom and
noncentrality `difference * sqrt(n) / std` (Cohen 1988). With several comparisons the smallest p-value meets `alpha / comparisons`
first under Holm's method: that worst case is what every function here plans for.
"""

from __future__ import annotations

import math
from typing import Literal

from scipy import optimize, stats

Test = Literal["t", "sign_flip", "wilcoxon"]
"""Paired t test, exact sign-flip permutation test of the mean, Wilcoxon's exact signed-rank test; all two-sided."""


def power_of(difference: float, n: int, std: float, alpha: float = 0.05, comparisons: int = 1) -> float:
    """Probability that a two-sided paired t test at level `alpha / comparisons` finds a true `difference`.

    Args:
        difference: true mean of the paired differences, in the metric's units.
        n: planned seeds; with fewer than two there is no test and no power.
        std: standard deviation of the paired differences; with 0, any difference but 0 is found.
        alpha: family-wise two-sided level, in (0, 1).
        comparisons: in the family (Holm's worst case).
    """
    level = _level(n, std, alpha, comparisons)
    if n < 2:
        return 0.0
    if std == 0:
        return 1.0 if difference != 0 else 0.0
    critical = float(stats.t.isf(level / 2, n - 1))
    noncentrality = abs(difference) * math.sqrt(n) / std
    # the wrong sign: below 1e-9 where it is left out, and scipy loses its footing further out
    wrong = stats.nct.sf(critical, n - 1, -noncentrality) if noncentrality < 6 else 0.0
    return float(stats.nct.sf(critical, n - 1, noncentrality) + wrong)


def smallest_difference(n: int, std: float, alpha: float = 0.05, power: float = 0.8, comparisons: int = 1) -> float:
    """The smallest true difference that n paired seeds find with probability `power`, in the units of `std`.

    Infinite with fewer than two seeds, 0 where the differences do not vary. Arguments as `power_of`; `power` lies above
    `alpha / comparisons` and below 1. Raises ValueError.
    """
    level = _level(n, std, alpha, comparisons)
    if not level < power < 1:
        raise ValueError(f"power must lie between alpha / comparisons = {level:g} and 1, got {power:g}")
    if n < 2:
        return math.inf
    if std == 0:
        return 0.0
    critical = float(stats.t.isf(level / 2, n - 1))
    # for two seeds and a small level the critical value is in the hundreds: the bracket follows it
    high = critical
    while power_of(high / math.sqrt(n), n, 1.0, level) < power:
        high *= 2
    effect = optimize.brentq(lambda d: power_of(d, n, 1.0, level) - power, 0.0, high / math.sqrt(n), xtol=1e-10)
    return float(effect) * std


def seeds_needed(
    difference: float, std: float, alpha: float = 0.05, power: float = 0.8, comparisons: int = 1, most: int = 10_000
) -> int | None:
    """The fewest paired seeds that find a true `difference` with probability `power`; None where `most` are not enough."""
    if power_of(difference, most, std, alpha, comparisons) < power:
        return None
    low, high = 1, most  # power grows with n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(difference, middle, std, alpha, comparisons) >= power else (middle, high)
    return high


def smallest_p(n: int, test: Test = "t") -> float:
    """The smallest two-sided p-value that n paired seeds can have; 1 where there is no test.

    Tests over the 2^n signs of the differences never go below 2 / 2^n: 0.0625 for five seeds.
    """
    if n < 1 or (test == "t" and n < 2):
        return 1.0
    return 0.0 if test == "t" else 2.0 ** (1 - n)


def out_of_reach(n: int, threshold: float, test: Test = "t", comparisons: int = 1) -> str | None:
    """Why n paired seeds can never reach p < `threshold` (after Holm over `comparisons`), or None where they can."""
    least = smallest_p(n, test)
    if least * comparisons < threshold:
        return None
    enough = n
    while smallest_p(enough, test) * comparisons >= threshold:
        enough += 1
    names = {"t": "a paired t test", "sign_flip": "a sign-flip test", "wilcoxon": "a signed-rank test"}
    family = f" x {comparisons} comparisons" if comparisons > 1 else ""
    return (
        f"p < {threshold:g} is out of reach: with {n} paired seeds {names[test]} has p >= {least:.4g}{family}; "
        f"it takes at least {enough} seeds"
    )


def _level(n: int, std: float, alpha: float, comparisons: int) -> float:
    if n < 0 or not (std >= 0 and math.isfinite(std)) or not 0 < alpha < 1 or comparisons < 1:
        raise ValueError(f"no test with n={n}, std={std}, alpha={alpha}, comparisons={comparisons}")
    return alpha / comparisons
