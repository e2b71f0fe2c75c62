"""Boundaries of group-sequential paired t tests: how small a p-value must be at each look.

Alpha is spent over the looks by a spending function of the share of seeds (Lan & DeMets 1983). What a look may spend is turned
into a nominal p level by the joint null distribution of the t statistics of all looks, which is computed here exactly, up to
quadrature, for any number of seeds: no normal approximation and no known variance.

Under the null hypothesis the direction of the vector of n differences is uniform on the sphere. Let theta be the angle of that
vector above the hyperplane of mean 0: t = sqrt(n - 1) tan(theta). With a further difference x, the angle phi = atan(x / norm)
is independent of the direction before, has density proportional to cos(phi)^(n - 1), and

    sin(theta') = sin(theta) cos(phi) sqrt(n / (n + 1)) + sin(phi) / sqrt(n + 1).

So the angles are a Markov chain of one dimension, and the usual recursion over looks (Armitage, McPherson & Rowe 1969) holds for
t as it does for z. The chain is symmetric: only |theta| is followed.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Spending = Literal["pocock", "obrien_fleming"]
Looks = tuple[int, ...]
"""Seeds at each look, ascending; the last is the most that there can be."""
_CELLS, _NODES = 400, 96
"""Cells of |theta| and quadrature nodes of phi. Doubling both changes nominal levels by less than 1 %."""
_EDGES = np.linspace(0.0, math.pi / 2, _CELLS + 1)
_QUADRATURE = np.polynomial.legendre.leggauss(_NODES)
_LEAST = 1e-7
"""Less than this is not spent at a look by itself but kept for the next one."""


def spent(alpha: float, share: float, spending: Spending) -> float:
    """Two-sided alpha spent when `share` (0 to 1] of the seeds are in; alpha / 2 a side (Lan & DeMets 1983)."""
    if spending == "pocock":
        return alpha * math.log(1 + (math.e - 1) * share)
    return float(4 * special.ndtr(special.ndtri(alpha / 4) / math.sqrt(share)))


@cache
def nominal_levels(looks: Looks, alpha: float, spending: Spending) -> tuple[float, ...]:
    """The two-sided nominal level of every look: a test that rejects where p < level has type I error `alpha` in all.

    Args:
        looks: seeds at each look, at least two, ascending.
        alpha: two-sided level over all looks, in (0, 1).
        spending: how it is spent.
    """
    chain = _Chain(looks[0])
    levels: list[float] = []
    total = 0.0
    for seeds in looks:
        chain.advance(seeds)
        due = spent(alpha, seeds / looks[-1], spending) - total
        if due < _LEAST:
            levels.append(0.0)
            continue
        levels.append(chain.cut(due))
        total += due
    return tuple(levels)


def crossing(looks: Looks, levels: tuple[float, ...]) -> float:
    """Probability, if there is no difference, that p falls below its level at any look."""
    chain = _Chain(looks[0])
    total = 0.0
    for seeds, level in zip(looks, levels, strict=True):
        chain.advance(seeds)
        total += chain.reject(level)
    return total


@cache
def _levels_by_alpha(looks: Looks, spending: Spending) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    alphas = np.geomspace(1e-5, 0.999, 28)
    return alphas, np.array([nominal_levels(looks, float(alpha), spending) for alpha in alphas])


def sequential_p(p_values: tuple[float, ...], looks: Looks, spending: Spending) -> float:
    """The smallest alpha at which a test with these p-values of its first looks would have rejected (Liu & Anderson 2008).

    Interpolated between alphas 1.5 apart; never below 1e-5.
    """
    alphas, levels = _levels_by_alpha(looks, spending)
    least = 1.0
    for look, p in enumerate(p_values):
        column = levels[:, look]
        known = column > 0
        if p >= column[-1] or not known.any():
            continue
        if p <= column[known][0]:
            least = min(least, float(alphas[known][0]))
        else:
            least = min(least, float(np.exp(np.interp(math.log(p), np.log(column[known]), np.log(alphas[known])))))
    return least


@lru_cache(maxsize=128)  # 1.3 MB each
def _transition(n: int) -> NDArray[np.float64]:
    """Where the mass of each cell goes with one difference after n: [cell, cell]; rows sum to 1."""
    width = _EDGES[1]
    nodes, weights = _QUADRATURE
    phi = nodes * min(math.pi / 2, 9 / math.sqrt(n))  # beyond 9 standard deviations there is nothing
    chance = weights * np.cos(phi) ** (n - 1)
    chance /= chance.sum()
    centres = (_EDGES[1:] + _EDGES[:-1]) / 2
    rise = np.outer(np.sin(centres), np.cos(phi)) * math.sqrt(n / (n + 1)) + np.sin(phi) / math.sqrt(n + 1)
    place = np.abs(np.arcsin(rise)) / width - 0.5
    # a landing point is shared by the three nearest cells, so that mass, mean and variance are kept: with mass and mean
    # alone, hundreds of steps would blur the distribution
    middle = np.clip(np.rint(place).astype(np.int64), 1, _CELLS - 2)
    off = np.clip(place - middle, -1.5, 1.5)
    row = np.arange(_CELLS)[:, None] * _CELLS
    matrix = np.zeros(_CELLS * _CELLS)
    for shift, part in ((-1, off * (off - 1) / 2), (0, 1 - off * off), (1, off * (off + 1) / 2)):
        matrix += np.bincount((row + middle + shift).ravel(), (part * chance).ravel(), _CELLS * _CELLS)
    return matrix.reshape(_CELLS, _CELLS)


class _Chain:
    """The null distribution of |theta| among tests that have not rejected yet, as masses of cells that cover [0, pi/2]."""

    def __init__(self, seeds: int) -> None:
        self.seeds = seeds
        self.mass = np.diff(1 - _p_of(_EDGES, seeds))

    def advance(self, seeds: int) -> None:
        """Add differences until there are `seeds` of them."""
        while self.seeds < seeds:
            self.mass = self.mass @ _transition(self.seeds)
            self.seeds += 1

    def cut(self, due: float) -> float:
        """Reject the outermost `due` of the mass. Returns the p level at which that happens."""
        outwards = np.maximum.accumulate(
            np.append(0.0, np.cumsum(self.mass[::-1]))
        )  # mass beyond each edge, from the last
        level = float(_p_of(np.array([np.interp(due, outwards, _EDGES[::-1])]), self.seeds)[0])
        self.reject(level)
        return level

    def reject(self, level: float) -> float:
        """Take away the mass with p < level. Returns how much that was."""
        critical = (
            0.0 if level >= 1 else math.atan(float(stats.t.isf(level / 2, self.seeds - 1)) / math.sqrt(self.seeds - 1))
        )
        kept = np.clip((critical - _EDGES[:-1]) / np.diff(_EDGES), 0.0, 1.0)
        before = float(self.mass.sum())
        self.mass = self.mass * kept
        return before - float(self.mass.sum())


def _p_of(angles: NDArray[np.float64], seeds: int) -> NDArray[np.float64]:
    """Two-sided p-values of |theta|."""
    with np.errstate(over="ignore"):
        p: NDArray[np.float64] = 2 * special.stdtr(seeds - 1, -np.tan(angles) * math.sqrt(seeds - 1))
    p[angles >= math.pi / 2] = 0.0
    return p
