"""A map of the classes in two dimensions, from their distances. Without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class ClassMap:
    """Places of the classes, and what they keep of the distances."""

    points: Matrix
    """[C, 2]"""
    explained: float
    """Share of the spread that the two axes hold: their eigenvalues over the sum of all that are positive."""
    stress: float
    """Kruskal's stress-1 of the map's distances: sqrt(sum (d - D)^2 / sum D^2), 0 where all are kept."""
    rank: float | None
    """Spearman's correlation of the map's distances with the given ones; None where either side has no differences."""


def class_map(distances: Matrix) -> ClassMap | None:
    """Classical scaling (Torgerson 1952) of distances that are squares; None below three classes, and where all are 0.

    The `activation` distance of gates is half a squared distance (see `simlap.evaluate.gate_analysis`), so the map's distances
    stand for D = sqrt(d). Distances below 0 are lifted, as for the tree: all by the same amount, so that the least is 0. Axes
    point to where the class farthest out lies.

    Args:
        distances: [C, C], symmetric; the diagonal is not looked at.
    """
    c = len(distances)
    upper = np.triu_indices(c, 1)
    if c < 3:
        return None
    condensed = distances[upper] - min(0.0, float(distances[upper].min()))
    squared = np.zeros((c, c))
    squared[upper] = condensed
    squared += squared.T
    centring = np.eye(c) - 1 / c
    values, vectors = np.linalg.eigh(-centring @ squared @ centring / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    if values[0] <= _NO_SPREAD:
        return None
    points = vectors[:, :2] * np.sqrt(values[:2].clip(0))
    far = np.abs(points).argmax(0)
    points *= np.where(points[far, [0, 1]] < 0, -1.0, 1.0)
    shown = np.linalg.norm(points[upper[0]] - points[upper[1]], axis=1)
    wanted = np.sqrt(condensed)
    stress = float(np.sqrt(np.square(shown - wanted).sum() / condensed.sum()))
    explained = float(values[:2].clip(0).sum() / values[values > 0].sum())
    return ClassMap(points, explained, stress, rank_correlation(shown, wanted))


def rank_correlation(one: Matrix, other: Matrix) -> float | None:
    """Spearman's correlation of two condensed matrices; None where either has no differences (or one entry)."""
    from scipy.stats import rankdata

    rounded = [np.round(values, 9) for values in (one, other)]
    if any(len(values) < 2 or np.ptp(values) == 0 for values in rounded):
        return None
    return float(np.corrcoef(*(rankdata(values) for values in rounded))[0, 1])
