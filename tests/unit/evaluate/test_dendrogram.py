from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cophenet, to_tree
from scipy.spatial.distance import pdist, squareform

from simlap import rng
from simlap.evaluate import dendrogram as module
from simlap.evaluate.dendrogram import (
    Labels,
    Linkage,
    Matrix,
    Tree,
    build_tree,
    cluster_purity,
    dendrogram_purity,
    numbered,
)


def _points(c: int, seed: int = 0) -> Matrix:
    distances: Matrix = squareform(pdist(np.random.default_rng(seed).standard_normal((c, 3))))
    return distances


def _naive_purity(tree: Tree, groups: Labels) -> float:
    """For each pair of a group, the leaves below the smallest node that holds both."""
    _, nodes = to_tree(tree.merges, rd=True)
    below = [set(node.pre_order()) for node in nodes]
    shares = []
    for a, b in itertools.combinations(range(len(groups)), 2):
        if groups[a] == groups[b]:
            leaves = min((s for s in below if {a, b} <= s), key=len)
            shares.append(np.mean([groups[leaf] == groups[a] for leaf in leaves]))
    return float(np.mean(shares))


@pytest.mark.parametrize("method", ["average", "complete", "single", "ward"])
@pytest.mark.parametrize("seed", [0, 1])
def test_dendrogram_purity_equals_the_loop(method: Linkage, seed: int) -> None:
    tree = build_tree(_points(12, seed), method)
    groups = np.random.default_rng(seed).integers(0, 3, 12)
    fit = dendrogram_purity(tree, groups)
    assert fit is not None
    assert fit.value == pytest.approx(_naive_purity(tree, groups))


@pytest.mark.parametrize("size", [1, 7, 10**9])
def test_chance_is_that_of_each_draw_alone(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHANCE_DRAWS", 30)
    monkeypatch.setattr(module, "_MAX_COUNTS", size * 12 * 3)
    tree = build_tree(_points(12), "average")
    groups = np.random.default_rng(0).integers(0, 3, 12)
    generator = rng.generator("purity", 12)
    draws = [groups[torch.randperm(12, generator=generator).numpy()] for _ in range(30)]
    clusters = tree.cut(3)

    def cut(groups: Labels) -> float:
        return float(sum(np.bincount(groups[clusters == k]).max() for k in np.unique(clusters)) / 12)

    whole, parts = dendrogram_purity(tree, groups), cluster_purity(clusters, groups)
    assert whole is not None
    for fit, naive in ((whole, lambda g: _naive_purity(tree, g)), (parts, cut)):
        values = [naive(draw) for draw in draws]
        assert fit.value == pytest.approx(naive(groups))
        assert fit.chance == pytest.approx(np.mean(values))
        assert fit.p == pytest.approx((1 + sum(value >= naive(groups) - 1e-9 for value in values)) / 31)


def test_a_tree_of_the_groups_is_pure_and_chance_is_less() -> None:
    groups = np.array([0, 1, 2] * 4)
    distances = (groups[:, None] != groups[None]).astype(float)
    tree = build_tree(distances, "average")
    clusters = tree.cut(3)
    purity, whole = cluster_purity(clusters, groups), dendrogram_purity(tree, groups)
    assert whole is not None
    assert purity.value == whole.value == 1
    assert 1 / 3 < purity.chance < 0.75
    assert 1 / 3 < whole.chance < 0.75
    assert tree.cophenetic == pytest.approx(1)
    assert sorted(tree.leaves) == list(range(12))


def test_cluster_purity_by_hand() -> None:
    fit = cluster_purity(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2]))
    assert fit.value == pytest.approx(3 / 5)
    assert cluster_purity(np.zeros(4, dtype=np.int64), np.array([0, 0, 1, 2])).value == 1 / 2


def test_cophenetic_correlation_is_scipys() -> None:
    distances = _points(9)
    tree = build_tree(distances, "average")
    expected, _ = cophenet(tree.merges, squareform(distances))
    assert tree.cophenetic == pytest.approx(expected)


def test_distances_below_zero_are_lifted_together() -> None:
    distances = _points(8)
    plain, lifted = build_tree(distances, "average"), build_tree(distances - distances.max(), "average")
    assert lifted.leaves == plain.leaves
    assert lifted.cophenetic == pytest.approx(plain.cophenetic)
    assert lifted.merges[:, 2].min() >= 0


def test_what_is_not_defined_is_none() -> None:
    assert build_tree(np.zeros((4, 4)), "average").cophenetic is None
    assert build_tree(np.array([[0.0, 1.0], [1.0, 0.0]]), "average").cophenetic is None
    assert dendrogram_purity(build_tree(_points(4), "average"), np.arange(4)) is None


def test_names_are_numbered_as_they_come() -> None:
    assert numbered(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
