"""Intervals and tests against scipy computed plainly, Holm against a published example, and the degenerate cases."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simlap.report.stats import estimate, finite, holm, paired

VALUES = st.floats(-10, 10, allow_nan=False).map(lambda x: round(x, 4))
PROBABILITIES = st.lists(st.floats(0, 1), max_size=12)


@given(st.lists(VALUES, min_size=2, max_size=9, unique=True))
def test_estimate_is_the_t_interval(values: list[float]) -> None:
    found = estimate(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert found.n == len(values)
    assert found.std == pytest.approx(np.std(values, ddof=1))
    assert (found.low, found.high) == pytest.approx((low, high))


@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=9))
def test_paired_is_scipys_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    x, y = map(list, zip(*pairs, strict=True))
    found = paired(x, y)
    difference = np.subtract(x, y)
    assert found.mean == pytest.approx(difference.mean(), abs=1e-12)
    if np.ptp(difference) > 1e-6:
        expected = stats.ttest_rel(x, y)
        interval = expected.confidence_interval(0.95)
        assert found.p_value == pytest.approx(expected.pvalue)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.low is not None
    assert found.high is not None
    assert finite(found.p_value)
    assert found.low <= found.mean <= found.high


def test_pairing_matters() -> None:
    """Seeds that differ a lot hide a constant effect from an unpaired test, not from a paired one."""
    y = [0.1, 0.5, 0.9, 0.3, 0.7]
    x = [v - 0.05 - e for v, e in zip(y, [0.001, -0.001, 0.002, 0.0, -0.002], strict=True)]
    p = paired(x, y).p_value
    assert p is not None
    assert p < 1e-4 < stats.ttest_ind(x, y).pvalue


def test_one_seed_has_no_interval() -> None:
    found, test = estimate([0.5]), paired([0.5], [0.25])
    assert (found.mean, found.std, found.low, found.high, found.half_width) == (0.5, None, None, None, None)
    assert (test.mean, test.low, test.p_value, test.half_width, test.significant) == (0.25, None, None, None, False)


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.1, 0.0), (-0.1, 0.0)])
def test_equal_differences_have_an_interval_of_width_zero(shift: float, p: float) -> None:
    y = [0.1, 0.3, 0.7]  # 0.1 + 0.1, 0.3 + 0.1 and 0.7 + 0.1 differ from y by 0.1 up to rounding only
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired([v + shift for v in y], y)
    assert found.mean == pytest.approx(shift)
    assert found.low == found.high == found.mean
    assert found.p_value == p


def test_values_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        estimate([0.1, math.nan])
    with pytest.raises(ValueError, match="finite"):
        estimate([])
    with pytest.raises(ValueError, match="differ in number"):
        paired([0.1, 0.2], [0.1])


def test_holm_on_a_published_example() -> None:
    """Four hypotheses, from Wikipedia's article on the Holm-Bonferroni method: at 0.05 the first and the last are rejected."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(PROBABILITIES)
def test_holm_is_step_down_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    m, order = len(p_values), sorted(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        # by definition: the largest of (m - j) p_(j) over all ranks up to p's
        rank = m - 1 - order[::-1].index(p)
        assert q == pytest.approx(min(1.0, max((m - j) * order[j] for j in range(rank + 1))))
        assert p <= q <= min(1.0, m * p) + 1e-12
