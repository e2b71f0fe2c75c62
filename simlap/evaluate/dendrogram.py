"""A tree of the classes from their distances, and how well it fits distances and known groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from simlap import rng

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]
Linkage = Literal["average", "complete", "single", "ward"]
_Measure = Callable[[Labels], Matrix]
"""Of [P, C] groups, [P]."""
_CHANCE_DRAWS = 999
_MAX_COUNTS = 1 << 24  # of leaves by groups in a chunk of draws; at most half as many counts of 8 bytes live at a time
_MAX_ORDERED = 300  # optimal leaf ordering takes a time quadratic to cubic in the leaves


@dataclass(frozen=True)
class Tree:
    """A dendrogram of C leaves."""

    merges: Matrix
    """[C - 1, 4] as in scipy: the two nodes, height, leaves below. Node C + i is what merge i makes."""
    leaves: list[int]
    """In the order in which the branches do not cross."""
    cophenetic: float | None
    """Correlation of the distances with the heights at which pairs meet (Sokal & Rohlf 1962); None where either is constant."""

    def cut(self, clusters: int) -> Labels:
        """Cluster of each leaf, from 0, where the tree is cut into so many (fewer where merges tie), [C]."""
        from scipy.cluster.hierarchy import fcluster

        found: Labels = fcluster(self.merges, clusters, "maxclust").astype(np.int64) - 1
        return found


def build_tree(distances: Matrix, method: Linkage) -> Tree:
    """Hierarchical clustering (scipy). Distances below 0 are lifted: all by the same amount, so that the least is 0.

    Args:
        distances: [C, C], symmetric, C > 1.
    """
    from scipy.cluster.hierarchy import cophenet, leaves_list, linkage

    c = len(distances)
    condensed = distances[np.triu_indices(c, 1)]
    condensed = condensed - min(0.0, float(condensed.min()))
    merges: Matrix = linkage(condensed, method, optimal_ordering=c <= _MAX_ORDERED)
    heights: Matrix = cophenet(merges)
    varied = min(np.ptp(condensed), np.ptp(heights)) > 1e-12
    fit = float(np.corrcoef(condensed, heights)[0, 1]) if varied else None
    return Tree(merges, [int(leaf) for leaf in leaves_list(merges)], fit)


@dataclass(frozen=True)
class GroupFit:
    """A measure of agreement with known groups in [0, 1], beside what groups dealt out at random get."""

    value: float
    chance: float
    """Mean over random permutations of the groups."""
    p: float
    """Share of these with a value at least as large, the observed one counted in."""


def cluster_purity(clusters: Labels, groups: Labels) -> GroupFit:
    """Share of the classes that belong to the commonest group of their cluster.

    Args:
        clusters, groups: [C], numbered from 0.
    """
    return _with_chance(groups, lambda g: _purity(clusters, g))


def dendrogram_purity(tree: Tree, groups: Labels) -> GroupFit | None:
    """Mean, over pairs of one group, of the group's share below the node where the two meet (Heller & Ghahramani 2005).

    None where no group has two members.

    Args:
        groups: [C], numbered from 0.
    """
    if len(np.unique(groups)) == len(groups):
        return None
    return _with_chance(groups, lambda g: _tree_purity(tree.merges, g))


def numbered(names: Sequence[str]) -> Labels:
    """Names as numbers from 0, in the order of first appearance."""
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names], dtype=np.int64)


def _with_chance(groups: Labels, measure: _Measure) -> GroupFit:
    c, generator = len(groups), rng.generator("purity", len(groups))
    orders = [torch.randperm(c, generator=generator).numpy() for _ in range(_CHANCE_DRAWS)]
    rows = np.stack([groups, *(groups[order] for order in orders)])  # [P, C], the observed ones first
    size = max(1, _MAX_COUNTS // (c * (int(groups.max()) + 1)))
    values = np.concatenate([measure(rows[start : start + size]) for start in range(0, len(rows), size)])
    value, draws = float(values[0]), values[1:]
    as_large = int((draws >= value - 1e-9).sum())
    return GroupFit(value, float(draws.mean()), (1 + as_large) / (1 + len(draws)))


def _purity(clusters: Labels, groups: Labels) -> Matrix:
    p, c = groups.shape
    shape = (p, int(clusters.max()) + 1, int(groups.max()) + 1)
    cells = np.ravel_multi_index((np.arange(p)[:, None], clusters[None], groups), shape)  # [P, C]
    table = np.bincount(cells.ravel(), minlength=math.prod(shape)).reshape(shape)
    purity: Matrix = table.max(2).sum(1) / c
    return purity


def _tree_purity(merges: Matrix, groups: Labels) -> Matrix:
    """All pairs that meet at a node at once, for all rows of groups: left[g] x right[g] of them in group g."""
    p, c = groups.shape
    one_hot = np.eye(int(groups.max()) + 1)
    below: dict[int, Matrix] = {}  # [P, groups] by node
    total, pairs = np.zeros(p), np.zeros(p)
    for i, (one, other, _, size) in enumerate(merges.tolist()):
        left, right = (below.pop(node) if node >= c else one_hot[groups[:, node]] for node in (int(one), int(other)))
        meeting, both = left * right, left + right
        below[c + i] = both
        pairs += meeting.sum(1)
        total += np.einsum("pg,pg->p", meeting, both) / size
    purity: Matrix = total / pairs
    return purity
