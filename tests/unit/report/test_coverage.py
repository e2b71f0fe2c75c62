"""Error rates by simulation: how often intervals cover, and how often a study without any effect reports one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from simlap.record.view import ArmView, CellView, StudyView
from simlap.report.compare import compare_to_baseline, simple_effects
from simlap.report.inference import BCA_COVERAGE, equivalence, exceeds, sign_flip
from simlap.report.stats import estimate, paired

STUDIES = 2_000
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_t_intervals_cover_what_they_say(seeds: int) -> None:
    """95 % of the intervals of means, and of paired differences, cover the truth."""
    rng = np.random.default_rng(seeds)
    means = differences = 0
    for _ in range(STUDIES):
        shared = rng.standard_normal(seeds)
        x, y = 0.3 + shared + rng.standard_normal((2, seeds))
        of_mean, of_difference = estimate(x), paired(x, y)
        assert of_mean.low is not None
        assert of_mean.high is not None
        assert of_difference.low is not None
        assert of_difference.high is not None
        means += of_mean.low <= 0.3 <= of_mean.high
        differences += of_difference.low <= 0 <= of_difference.high
    assert 0.93 <= means / STUDIES <= 0.97
    assert 0.93 <= differences / STUDIES <= 0.97


@pytest.mark.parametrize("seeds", BCA_COVERAGE)
def test_bca_intervals_cover_as_little_as_the_report_says(seeds: int) -> None:
    """The same call as `bca`, for all studies at once."""
    rng = np.random.default_rng(seeds)
    data = rng.standard_normal((STUDIES, seeds))
    found = stats.bootstrap(
        (data,), np.mean, axis=-1, n_resamples=1_999, confidence_level=0.95, method="BCa", rng=rng, batch=200
    ).confidence_interval
    covered = 100 * np.mean((found.low <= 0) & (found.high >= 0))
    assert covered == pytest.approx(BCA_COVERAGE[seeds], abs=2)


def study_of(values: Any) -> StudyView:
    """A finished study of one factor, with these values by arm and seed."""
    arms, seeds = map(range, values.shape)
    found = [
        ArmView(
            f"a={arm}", {"a": str(arm)}, False, arm == 0,
            [CellView(f"{arm}-{seed}", seed, "done", result={"test/x": float(values[arm, seed])}) for seed in seeds],
        )
        for arm in arms
    ]  # fmt: skip
    return StudyView("aa", "val/x", "max", "test/x", 5, [*seeds], {"a": [*map(str, arms)]}, found)


def test_a_study_without_effects_reports_one_in_five_percent_at_most() -> None:
    """A/A: every arm draws from the same distribution, beside what its seed shares. Holm's method finds something where the
    smallest p-value, times the number of arms, is below 5 %: so it is counted, after it was held against whole reports."""
    arms, seeds = 3, 5
    rng = np.random.default_rng(0)
    values = (
        0.9 + 0.01 * rng.standard_normal((40_000, 1, seeds)) + 0.005 * rng.standard_normal((40_000, 1 + arms, seeds))
    )
    p = stats.ttest_rel(values[:, 1:], values[:, :1], axis=-1).pvalue
    reported = p.min(axis=1) * arms < 0.05
    checked = [*range(50), *np.flatnonzero(reported)[:50]]
    for i in checked:
        view = study_of(values[i])
        found = [c.paired for c in compare_to_baseline(view).values()]
        assert any(test is not None and test.significant for test in found) == reported[i]
        found = [effect.comparison.paired for effect in simple_effects(view)]
        assert any(test is not None and test.significant for test in found) == reported[i]
    assert 0.035 <= reported.mean() <= 0.05


def test_other_tests_keep_their_levels() -> None:
    """At the edge of what they deny, one-sided and equivalence tests reject in 5 % at most."""
    rng = np.random.default_rng(1)
    above = same = flipped = 0
    for _ in range(STUDIES):
        d = 0.5 + rng.standard_normal(8)
        above += (exceeds(d, 0.5) or 0) < 0.05
        same += (equivalence(0.1 * (d - 0.5) + 0.5, 0.5) or 0) < 0.05
    for _ in range(STUDIES // 4):
        flipped += (sign_flip(rng.laplace(size=9)) or 0) < 0.05
    assert 0.035 <= above / STUDIES <= 0.065
    assert same / STUDIES <= 0.065
    assert flipped / (STUDIES // 4) <= 0.07
