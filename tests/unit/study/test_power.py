"""Planning seeds: power of the paired t test against published values and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from simlap.study.power import out_of_reach, power_of, seeds_needed, smallest_difference, smallest_p


def test_published_sample_sizes() -> None:
    """G*Power 3 manual (Faul et al. 2007), t test of matched pairs, two-sided, alpha 0.05, d = 0.5: n = 34 at power 0.8; and
    d = 0.5 at power 0.95: n = 54."""
    assert seeds_needed(0.5, 1.0, power=0.8) == 34
    assert seeds_needed(0.5, 1.0, power=0.95) == 54
    assert power_of(0.5, 54, 1.0) == pytest.approx(0.9502, abs=5e-4)


def test_power_is_what_happens() -> None:
    differences = np.random.default_rng(0).normal(0.6, 1.0, (40_000, 9))
    found = stats.ttest_1samp(differences, 0.0, axis=1).pvalue < 0.05 / 3
    assert power_of(0.6, 9, 1.0, comparisons=3) == pytest.approx(found.mean(), abs=0.008)


@pytest.mark.parametrize("seeds", [2, 3, 5, 24, 500])
@pytest.mark.parametrize("comparisons", [1, 50])
def test_the_smallest_difference_is_found_with_the_power_asked_for(seeds: int, comparisons: int) -> None:
    difference = smallest_difference(seeds, 0.02, power=0.9, comparisons=comparisons)
    assert power_of(difference, seeds, 0.02, comparisons=comparisons) == pytest.approx(0.9, abs=1e-6)


def test_power_without_a_difference_is_the_level() -> None:
    assert power_of(0.0, 7, 1.0, alpha=0.04, comparisons=2) == pytest.approx(0.02)


def test_without_pairs_or_spread() -> None:
    assert smallest_difference(1, 0.1) == math.inf
    assert smallest_difference(5, 0.0) == 0.0
    assert power_of(1.0, 1, 0.1) == 0.0
    assert (power_of(1e-9, 3, 0.0), power_of(0.0, 3, 0.0)) == (1.0, 0.0)
    assert seeds_needed(0.001, 1.0, most=10) is None


@pytest.mark.parametrize(
    "change", [{"alpha": 0.0}, {"std": -1.0}, {"std": math.nan}, {"comparisons": 0}, {"power": 0.01}]
)
def test_nonsense_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"alpha|power"):
        smallest_difference(**{"n": 5, "std": 1.0, **change})  # type: ignore[arg-type]


def test_thresholds_out_of_reach() -> None:
    assert smallest_p(5, "sign_flip") == 0.0625
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    means = np.abs((signs * [1.0, 2.0, 3.0, 4.0, 5.0]).mean(axis=1))
    assert (means >= means.max()).mean() == smallest_p(5, "sign_flip"), "the most extreme of all 32 sign flips"
    assert stats.wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0]).pvalue == smallest_p(5, "wilcoxon")
    reason = out_of_reach(5, 0.05, "sign_flip")
    assert reason is not None
    assert "0.0625" in reason
    assert "at least 6 seeds" in reason
    assert out_of_reach(6, 0.05, "sign_flip") is None
    assert out_of_reach(6, 0.05, "sign_flip", comparisons=2) is not None
    assert out_of_reach(1, 0.05) is not None
    assert out_of_reach(2, 0.001) is None
