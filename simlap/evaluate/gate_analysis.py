"""What the gates learnt of the classes (arXiv 2410.18200: gate values mirror semantic distance; a hierarchy from gates).

Two distances between classes a and b come from the gates g(a, b) in [0, 1]^D, C classes, A(a, b) = mean over D of g(a, b):

- `activation`, the primary one: d(a, b) = (A(a, a) + A(b, b)) / 2 - A(a, b). The share of dimensions that a pair opens is
  the paper's similarity of the pair; read as a kernel, this is half the squared distance it induces. For `sign` gates it is
  exactly the share of weights whose signs differ, for `product` gates half the mean squared difference of the two classes'
  own gates; for the others it can fall below 0. Taking the self-gates into account keeps a class that opens few dimensions
  with every partner from looking far from all of them, as it would with 1 - A(a, b).
- `self_cosine`: 1 - cosine(g(a, a), g(b, b)). What each class opens for itself; no gate of a mixed pair is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from simlap.evaluate.dendrogram import Linkage, build_tree, cluster_purity, dendrogram_purity, numbered
from simlap.evaluate.mantel import mantel
from simlap.nn.filter import FeatureFilter

Matrix = NDArray[np.float64]
SCHEMA_VERSION = 1
_MAX_GATES = 1 << 22  # values at a time
_DECIMALS = 6
"""Of the gates' distances, wherever they are used."""


@dataclass(frozen=True)
class PairGates:
    """The gates of all unordered class pairs, of which no more than this is kept."""

    activation: Matrix
    """[C, C], A."""
    own: Tensor
    """[C, D] float64, g(a, a)."""
    entropy: float
    """Bernoulli entropy in nats, mean over D and all pairs a < b."""
    open_fraction: float
    """Share of gates above one half, over all pairs a < b."""

    @property
    def distance(self) -> Matrix:
        """The `activation` distance, [C, C]."""
        own = np.diag(self.activation)
        return (own[:, None] + own[None]) / 2 - self.activation

    @property
    def self_cosine(self) -> Matrix:
        """The `self_cosine` distance, [C, C]."""
        return cosine_distances(self.own)


@dataclass(frozen=True)
class GateAnalysis:
    """Numbers for the record, and everything a page of figures needs."""

    metrics: dict[str, float]
    """Names without `gates/`. What is not defined (no hierarchy, no differences, fewer than three classes) is absent."""
    artefact: dict[str, Any] = field(repr=False)
    """JSON-able. Matrices are given by their upper triangles, row by row, as in scipy's condensed form."""


def analyse_gates(
    gates: FeatureFilter,
    *,
    class_names: Sequence[str],
    features: Tensor,
    labels: Tensor,
    semantic: Tensor | None = None,
    groups: Sequence[str] | None = None,
    permutations: int = 9999,
    linkage: Linkage = "average",
    notes: Sequence[str] = (),
) -> GateAnalysis:
    """Correlations of the gates' distances with those of features and hierarchy, and the tree they make.

    Args:
        gates: a filter; looked at in evaluation mode, without noise.
        features: [n, d], of images whose class means are compared (cosine).
        labels: int64 [n].
        semantic: [C, C] distances in the classes' hierarchy, None where there is none.
        groups: the hierarchy's top-level group of each class.
        permutations: of the classes, for the p-values.
        linkage: of the tree.
        notes: what a reader should know, kept in the artefact.
    """
    c, device = len(class_names), features.device
    pairs = pair_gates(gates, c, device)
    means, present = class_means(features, labels, c)
    own = np.diag(pairs.activation)
    upper = np.triu_indices(c, 1)
    metrics = {
        "activation": float(pairs.activation[upper].mean()),
        "self_activation": float(own.mean()),
        "entropy": pairs.entropy,
        "open_fraction": pairs.open_fraction,
    }
    # gates are float32: what differs by less than its rounding does not differ
    distances = {
        name: np.round(matrix, _DECIMALS) + 0.0  # no -0
        for name, matrix in (("activation", pairs.distance), ("self_cosine", pairs.self_cosine))
    }
    feature_distances = np.full((c, c), np.nan)
    feature_distances[np.ix_(present, present)] = cosine_distances(means)
    others: dict[str, tuple[Matrix, Sequence[int]]] = {"features": (feature_distances, present)}
    if semantic is not None:
        others["hierarchy"] = (semantic.double().cpu().numpy(), range(c))
    correlations: dict[str, dict[str, Any]] = {}
    for other, (matrix, rows) in others.items():
        for name, distance in distances.items():
            part = np.ix_(rows, rows)
            found = mantel(matrix[part], distance[part], permutations, device=device)
            if found is None:
                continue
            prefix = "" if name == "activation" else f"{name}_"
            metrics |= {f"{prefix}spearman_{other}": found.rho, f"{prefix}p_{other}": found.p}
            correlations.setdefault(other, {})[name] = vars(found)
    artefact: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "gates",
        "class_names": list(class_names),
        "activation": _condensed(pairs.activation),
        "self_activation": [_digits(value) for value in own.tolist()],
        "distance": _condensed(distances["activation"]),
        "self_cosine": _condensed(distances["self_cosine"]),
        "feature_distance": _condensed(feature_distances),
        "semantic_distance": None if semantic is None else _condensed(others["hierarchy"][0]),
        "groups": None if groups is None else list(groups),
        "correlations": correlations,
        "notes": list(notes),
    }
    tree_metrics, tree_artefact = _tree(distances["activation"], linkage, groups)
    return GateAnalysis(
        {**metrics, **tree_metrics}, {**artefact, **tree_artefact, "metrics": {**metrics, **tree_metrics}}
    )


def _tree(distance: Matrix, linkage: Linkage, groups: Sequence[str] | None) -> tuple[dict[str, float], dict[str, Any]]:
    tree = build_tree(distance, linkage)
    differ = len(distance) > 2 and np.ptp(distance[np.triu_indices(len(distance), 1)]) > 1e-12
    metrics: dict[str, float] = {}
    artefact: dict[str, Any] = {
        "linkage_method": linkage,
        "linkage": [[int(a), int(b), _digits(height), int(n)] for a, b, height, n in tree.merges.tolist()],
        "leaf_order": tree.leaves,
        "clusters": None,
        "chance": {},
    }
    if tree.cophenetic is not None:
        metrics["cophenetic"] = tree.cophenetic
    if groups is not None and 1 < len(set(groups)) < len(groups) and differ:
        numbers = numbered(groups)
        clusters = tree.cut(int(numbers.max()) + 1)
        artefact["clusters"] = clusters.tolist()
        fits = {"purity": cluster_purity(clusters, numbers), "dendrogram_purity": dendrogram_purity(tree, numbers)}
        for name, fit in fits.items():
            if fit is not None:
                metrics[name] = fit.value
                artefact["chance"][name] = {"mean": fit.chance, "p": fit.p}
    return metrics, artefact


@torch.no_grad()
def pair_gates(gates: FeatureFilter, num_classes: int, device: torch.device | str = "cpu") -> PairGates:
    """Gates of all unordered pairs (and of each class with itself) in evaluation mode, in chunks."""
    was_training = gates.training
    gates.eval()
    first, second = torch.triu_indices(num_classes, num_classes, device=device)
    activation = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)
    own: list[Tensor] = []
    mixed = entropy = opened = 0.0
    rows, start = 1, 0
    while start < len(first):
        part = slice(start, start + rows)
        a, b = first[part], second[part]
        g = gates(a, b).of_rows.double()  # [b, D]
        activation[a, b] = activation[b, a] = g.mean(1)
        own.append(g[a == b])
        g = g[a != b]
        entropy -= float((torch.xlogy(g, g) + torch.xlogy(1 - g, 1 - g)).sum())
        opened += float((g > 0.5).sum())
        mixed += g.numel()
        start += rows
        rows = max(1, _MAX_GATES // g.shape[1])  # the first row tells D
    gates.train(was_training)
    return PairGates(activation.cpu().numpy(), torch.cat(own), entropy / max(1.0, mixed), opened / max(1.0, mixed))


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, list[int]]:
    """Mean features of the classes that have images, [m, d] float64, and which classes these are."""
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    sums.index_add_(0, labels, features.double())
    counts = torch.bincount(labels, minlength=num_classes)
    present = counts.nonzero()[:, 0]
    return sums[present] / counts[present, None], present.tolist()


def cosine_distances(rows: Tensor) -> Matrix:
    """1 - cosine between all rows [m, d], symmetric, [m, m]."""
    unit = F.normalize(rows.double(), dim=1)
    cosine = unit @ unit.T
    distances: Matrix = (1 - (cosine + cosine.T) / 2).cpu().numpy()
    return distances


def _condensed(matrix: Matrix) -> list[float | None]:
    return [
        _digits(value) if math.isfinite(value) else None for value in matrix[np.triu_indices(len(matrix), 1)].tolist()
    ]


def _digits(value: float) -> float:
    """Six digits: enough for figures, and half the bytes."""
    return float(f"{value:.6g}")
