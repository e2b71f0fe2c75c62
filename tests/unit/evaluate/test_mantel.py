from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from simlap.evaluate import mantel as module
from simlap.evaluate.mantel import Matrix, mantel


def _distances(c: int, seed: int, levels: int | None = None) -> Matrix:
    values = np.random.default_rng(seed).random((c, c))
    if levels:
        values = np.floor(values * levels)  # ties
    upper = np.triu(values, 1)
    matrix: Matrix = upper + upper.T
    return matrix


@pytest.mark.parametrize("levels", [None, 3])
def test_exact_p_counts_all_permutations(levels: int | None) -> None:
    a, b = _distances(5, 0), _distances(5, 1, levels)
    upper = np.triu_indices(5, 1)
    observed = spearmanr(a[upper], b[upper]).statistic
    as_large = 0
    for order in itertools.permutations(range(5)):
        permuted = b[np.ix_(order, order)]
        as_large += spearmanr(a[upper], permuted[upper]).statistic >= observed - 1e-9
    found = mantel(a, b, permutations=120)
    assert found is not None
    assert (found.exact, found.permutations) == (True, 120)
    assert found.rho == pytest.approx(observed)
    assert found.p == pytest.approx(as_large / 120)


def test_drawn_p_comes_near_the_exact_one_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = _distances(7, 3), _distances(7, 4)
    exact = mantel(a, b, permutations=5040)
    monkeypatch.setattr(module, "_MAX_ENTRIES", 49 * 100)
    drawn = mantel(a, b, permutations=4000)
    assert exact is not None
    assert drawn is not None
    assert exact.exact
    assert not drawn.exact
    assert drawn.rho == exact.rho
    assert abs(drawn.p - exact.p) < 0.04
    assert mantel(a, b, permutations=4000) == drawn  # keyed


@pytest.mark.parametrize("c", [3, 7, 8, 9, 17, 20])
def test_permuted_sums_in_blocks_equal_the_whole(c: int) -> None:
    generator = torch.Generator().manual_seed(c)
    a = torch.randint(0, 50, (c, c), generator=generator).triu(1)
    b = torch.randint(0, 50, (c, c), generator=generator)
    b = b + b.T
    orders = torch.stack([torch.randperm(c, generator=generator) for _ in range(5)])
    expected = [int((a * b[order][:, order]).sum()) for order in orders]
    assert module._sums(a, b, orders).tolist() == expected


def test_the_largest_sum_fits() -> None:
    """That of two equal orders: 4 (1^2 + 2^2 + ... + n^2) for n pairs."""
    n = module.MAX_OBJECTS * (module.MAX_OBJECTS - 1) // 2
    assert 4 * n * (n + 1) * (2 * n + 1) // 6 < 2**63


def test_equal_matrices_have_the_smallest_p() -> None:
    a = _distances(10, 0)
    found = mantel(a, 3 * a + 1, permutations=99)
    assert found is not None
    assert found.rho == pytest.approx(1)
    assert found.p == 1 / 100
    opposite = mantel(a, 1 - a, permutations=99)
    assert opposite is not None
    assert opposite.rho == pytest.approx(-1)
    assert opposite.p == 1.0


def test_rounding_makes_no_differences() -> None:
    a = np.full((4, 4), 0.1)
    a[0, 1] = a[1, 0] = 0.1 + 1e-15
    assert mantel(a, _distances(4, 0), permutations=99) is None


def test_without_differences_or_with_two_objects_there_is_no_correlation() -> None:
    assert mantel(np.ones((5, 5)), _distances(5, 0), permutations=99) is None
    assert mantel(_distances(5, 0), np.zeros((5, 5)), permutations=99) is None
    assert mantel(_distances(2, 0), _distances(2, 1), permutations=99) is None


def test_under_chance_p_is_uniform() -> None:
    small = [mantel(_distances(8, 2 * i), _distances(8, 2 * i + 1), permutations=99) for i in range(200)]
    share = np.mean([found is not None and found.p <= 0.2 for found in small])
    assert 0.1 < share < 0.3


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"two square matrices of one size are needed, got \(3, 3\) and \(4, 4\)"):
        mantel(_distances(3, 0), _distances(4, 0), permutations=9)
    with pytest.raises(ValueError, match="at most 1500 objects, got 1501"):
        mantel(np.zeros((1501, 1501)), np.zeros((1501, 1501)), permutations=9)
