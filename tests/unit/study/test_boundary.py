"""Group-sequential boundaries of t tests: published tables in the limit of many seeds, simulation for few."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import special, stats

from simlap.study.boundary import Spending, crossing, nominal_levels, sequential_p, spent

MANY = (24, 48, 72, 96, 120)
FEW = (4, 6, 8, 10, 12, 16, 20, 24)


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        # Lan & DeMets (1983); five equal looks, two-sided 0.05 (Jennison & Turnbull 2000, chapter 7; SAS SEQDESIGN)
        ("obrien_fleming", [4.8769, 3.3569, 2.6803, 2.2898, 2.0310]),
        ("pocock", [2.4380, 2.4268, 2.4101, 2.3966, 2.3859]),
    ],
)
def test_published_boundaries_in_the_limit(spending: Spending, published: list[float]) -> None:
    levels = np.array(nominal_levels(MANY, 0.05, spending))
    assert stats.norm.isf(levels / 2) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize(
    "z",
    [
        [2.413] * 5,  # Pocock 1977 (Jennison & Turnbull 2000, table 2.1)
        [2.040 * (5 / k) ** 0.5 for k in range(1, 6)],  # O'Brien & Fleming 1979 (table 2.3)
    ],
)
def test_published_constants_in_the_limit(z: list[float]) -> None:
    assert crossing(MANY, tuple(2 * stats.norm.sf(z))) == pytest.approx(0.05, abs=0.0015)


@pytest.mark.parametrize("spending", ["pocock", "obrien_fleming"])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_few_seeds_spend_what_they_may(spending: Spending, alpha: float) -> None:
    """200,000 simulated sequences of t statistics with unknown variance, look by look."""
    x = np.random.default_rng(1).standard_normal((200_000, FEW[-1]))
    sums, squares = x.cumsum(axis=1), (x * x).cumsum(axis=1)
    alive, total = np.ones(len(x), dtype=np.bool_), 0.0
    for seeds, level in zip(FEW, nominal_levels(FEW, alpha, spending), strict=True):
        mean = sums[:, seeds - 1] / seeds
        std = np.sqrt((squares[:, seeds - 1] - seeds * mean**2) / (seeds - 1))
        alive &= 2 * special.stdtr(seeds - 1, -np.abs(mean) * seeds**0.5 / std) >= level
        total = spent(alpha, seeds / FEW[-1], spending)
        error = (total / len(x)) ** 0.5
        assert 1 - alive.mean() == pytest.approx(total, abs=4 * error + 1e-5), seeds
    assert total == pytest.approx(alpha)


def test_a_single_look_is_the_t_test() -> None:
    assert nominal_levels((7,), 0.05, "pocock") == pytest.approx((0.05,), rel=1e-3)


@pytest.mark.parametrize("spending", ["pocock", "obrien_fleming"])
def test_more_alpha_never_rejects_less(spending: Spending) -> None:
    """What handing alpha on relies on (Maurer & Bretz 2013)."""
    levels = [nominal_levels(FEW, 0.05 / m, spending) for m in (15, 6, 3, 2, 1)]
    assert all(low <= high for less, more in itertools.pairwise(levels) for low, high in zip(less, more, strict=True))


@pytest.mark.parametrize("look", [0, 3, 6])
def test_a_sequential_p_is_the_alpha_at_which_it_rejects(look: int) -> None:
    p = (1.0,) * look + (nominal_levels(FEW, 0.03, "pocock")[look],)
    assert sequential_p(p, FEW, "pocock") == pytest.approx(0.03, rel=0.01)
    assert sequential_p((*p, 1.0), FEW, "pocock") == sequential_p(p, FEW, "pocock")
    assert sequential_p((0.0,), FEW, "pocock") == pytest.approx(1e-5)
    assert sequential_p((1.0,), FEW, "pocock") == 1.0
