from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from simlap.evaluate.class_map import class_map


def _squared(points: np.ndarray) -> np.ndarray:
    squared: np.ndarray = np.square(points[:, None] - points[None]).sum(2)
    return squared


def test_points_of_a_plane_are_found_again() -> None:
    points = np.random.default_rng(0).normal(size=(9, 2))
    found = class_map(_squared(points))
    assert found is not None
    np.testing.assert_allclose(_squared(found.points), _squared(points), atol=1e-9)
    assert found.explained == pytest.approx(1)
    assert found.stress == pytest.approx(0, abs=1e-6)
    assert found.rank == pytest.approx(1)


def test_what_does_not_fit_is_said() -> None:
    points = np.random.default_rng(1).normal(size=(12, 6)) * [3, 2, 1, 1, 1, 1]
    squared = _squared(points)
    found = class_map(squared)
    assert found is not None
    values = np.linalg.eigvalsh(np.cov(points.T))[::-1]
    assert found.explained == pytest.approx(values[:2].sum() / values.sum())
    upper = np.triu_indices(12, 1)
    shown, wanted = np.sqrt(_squared(found.points))[upper], np.sqrt(squared)[upper]
    assert found.stress == pytest.approx(np.sqrt(((shown - wanted) ** 2).sum() / (wanted**2).sum()))
    assert found.rank == pytest.approx(spearmanr(shown, wanted).statistic)
    assert 0.1 < found.stress < 1


def test_it_comes_out_the_same_way_up() -> None:
    squared = _squared(np.random.default_rng(2).normal(size=(7, 3)))
    first, second = class_map(squared), class_map(squared + 0.0)
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.points, second.points)
    assert all(column[np.abs(column).argmax()] > 0 for column in first.points.T)


def test_distances_below_0_are_lifted() -> None:
    squared = _squared(np.random.default_rng(3).normal(size=(6, 2)))
    least = squared[np.triu_indices(6, 1)].min()
    lowered = squared - least - 0.1
    found, lifted = class_map(lowered), class_map(squared - least)
    assert found is not None
    assert lifted is not None
    np.testing.assert_allclose(found.points, lifted.points, atol=1e-9)


def test_no_map_where_there_is_nothing_to_map() -> None:
    assert class_map(np.zeros((2, 2))) is None
    assert class_map(np.zeros((5, 5))) is None
