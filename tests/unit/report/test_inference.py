"""Tests and intervals against published values: the source stands beside each."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from scipy import stats

from simlap.report.inference import (
    bca,
    effect_size,
    equivalence,
    exceeds,
    normality,
    sign_flip,
)
from simlap.report.stats import paired

# Extra sleep under two drugs (Cushny & Peebles 1905; Student 1908): R's `sleep`
SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)
# Differences of heights of 15 pairs of maize plants, in eighths of an inch (Darwin 1876; Fisher 1935, The Design of Experiments)
DARWIN = [49.0, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
# Spatial test, data A (Efron & Tibshirani 1993, An Introduction to the Bootstrap, table 14.1)
SPATIAL = [48.0, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41]


def sleep() -> list[float]:
    return [a - b for a, b in zip(*SLEEP, strict=True)]


def test_paired_t_is_r_s() -> None:
    """`t.test(extra ~ group, data = sleep, paired = TRUE)`: t = -4.0621, df = 9, p-value = 0.002833, [-2.4598858, -0.7001142]."""
    found = paired(*SLEEP)
    assert found.mean == pytest.approx(-1.58)
    assert found.p_value == pytest.approx(0.002833, abs=5e-7)
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)


def test_effect_size_is_toster_s() -> None:
    """R's TOSTER, vignette "An Introduction to t_TOST": Hedges's g(z) of the sleep data is -1.174."""
    assert effect_size(sleep()) == pytest.approx(-1.174, abs=5e-4)


def test_equivalence_is_toster_s() -> None:
    """The same vignette, bounds of 0.5: TOST lower t = -2.777, p = 0.989; upper t = -5.348, p < 0.001; the larger p counts."""
    assert equivalence(sleep(), 0.5) == pytest.approx(0.989, abs=5e-4)
    assert exceeds(sleep(), -0.5) == pytest.approx(float(stats.t.sf(-2.777, 9)), abs=1e-5)
    assert exceeds([-d for d in sleep()], -0.5) == pytest.approx(float(stats.t.sf(5.348, 9)), rel=1e-3)


def test_equivalence_of_a_published_replication() -> None:
    """Lakens 2017 (SPPS 8, 355-362), `TOSTpaired(n = 65, m1 = 5.83, m2 = 5.75, sd1 = 1.17, sd2 = 1.29, r12 = 0.75, +-0.4 d_z)`:
    t(64) = -2.49, p = .008."""
    std = math.sqrt(1.17**2 + 1.29**2 - 2 * 0.75 * 1.17 * 1.29)
    shape = np.linspace(-1, 1, 65)
    differences = 0.08 + std * shape / shape.std(ddof=1)
    assert equivalence(differences, 0.4 * std) == pytest.approx(0.008, abs=5e-4)
    assert exceeds(-differences, -0.4 * std) == pytest.approx(float(stats.t.sf(2.49, 64)), abs=1e-4)


def test_sign_flip_is_fisher_s() -> None:
    """Fisher 1935, section 21: of the 2^15 sums, 863 are 314 or more; of both signs, 1726 (5.27 %); his t test has 4.97 %."""
    assert sum(DARWIN) == 314
    assert sign_flip(DARWIN) == pytest.approx(2 * 863 / 2**15, abs=1e-9)
    assert paired(DARWIN, [0.0] * 15).p_value == pytest.approx(0.0497, abs=5e-5)


def test_sign_flip_needs_eight_seeds() -> None:
    assert sign_flip([1.0] * 7) is None
    assert sign_flip(np.linspace(1, 2, 8)) == pytest.approx(2 / 2**8)


def test_many_seeds_flip_signs_at_random_and_alike() -> None:
    d = np.random.default_rng(0).standard_normal(24) + 0.4
    found = sign_flip(d)
    assert found == sign_flip(d)
    assert found == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)


def test_bca_is_efron_s() -> None:
    """Efron & Tibshirani 1993, table 14.2: the 90 % BCa interval of the (plug-in) variance of the spatial test data is
    [115.8, 259.6], from 2,000 resamples."""
    found = bca(SPATIAL, np.var, 0.90)
    assert found is not None
    assert found == pytest.approx((115.8, 259.6), rel=0.02)


def test_bca_of_a_mean_by_its_definition() -> None:
    """All 5^5 resamples, and the formulas (14.9)-(14.15) of Efron & Tibshirani 1993, written plainly."""
    x = np.array([0.1, 0.35, 0.4, 0.42, 0.9])
    means = np.array([np.mean(draw) for draw in itertools.product(x, repeat=5)])
    z0 = stats.norm.ppf((np.mean(means < x.mean() - 1e-12) + np.mean(means <= x.mean() + 1e-12)) / 2)
    left_out = np.array([np.delete(x, i).mean() for i in range(5)])
    spread = left_out.mean() - left_out
    a = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5)
    levels = [stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))) for z in stats.norm.ppf([0.025, 0.975])]
    assert bca(x) == pytest.approx(np.quantile(means, levels), abs=0.02)


def test_normality_is_r_s() -> None:
    """`shapiro.test(with(sleep, extra[group == 1] - extra[group == 2]))` in R: W = 0.82987, p-value = 0.03334."""
    assert normality(sleep()) == pytest.approx(0.03334, abs=5e-6)


def test_differences_without_spread_or_too_few() -> None:
    same = [0.25] * 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (effect_size(same), bca(same), normality(same)) == (None, None, None)
        assert (effect_size([1, 2]), bca([1, 2]), normality([1, 2])) == (None, None, None)
        assert (exceeds([0.3], 0.1), equivalence([0.3], 0.1)) == (None, None)
        assert (exceeds(same, 0.2), exceeds(same, 0.25)) == (0.0, 1.0)
        assert (equivalence(same, 0.3), equivalence(same, 0.2)) == (0.0, 1.0)
        assert sign_flip(same) == pytest.approx(2 / 2**9)


def test_equal_differences_at_the_margin_are_not_above_it_by_rounding() -> None:
    d = [0.51 - 0.5] * 3
    assert d[0] > 0.01
    assert (exceeds(d, 0.01), exceeds(d, 0.0099), exceeds([-x for x in d], -0.01)) == (1.0, 0.0, 1.0)
    assert equivalence(d, 0.0101) == 0.0
