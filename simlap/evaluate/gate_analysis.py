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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simlap.evaluate.dendrogram import Linkage, build_tree, cluster_purity, dendrogram_purity, numbered
from simlap.evaluate.gate_failures import CLOSED, OPEN, RANGE
from simlap.evaluate.mantel import mantel
from simlap.evaluate.pair_gates import PairGates, cosine_distances, pair_gates
from simlap.evaluate.pair_heat import default_pairs, pair_heat
from simlap.nn.filter import FeatureFilter

Matrix = NDArray[np.float64]
SCHEMA_VERSION = 2
"""Of the artefact. 1 had neither `pair_gates` nor the metrics of `simlap.evaluate.gate_failures`."""
_DECIMALS = 6
"""Of the gates' distances, wherever they are used."""


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
        **_signature(pairs),
    }
    # gates are float32: what differs by less than its rounding does not differ
    distances = {
        name: np.round(matrix, _DECIMALS) + 0.0  # no -0
        for name, matrix in (("activation", pairs.distance), ("self_cosine", pairs.self_cosine))
    }
    feature_distances = np.full((c, c), np.nan)
    feature_distances[np.ix_(present, present)] = cosine_distances(means)
    semantic_distances = None if semantic is None else semantic.double().cpu().numpy()
    found, correlations = correlate(
        distances, {"features": feature_distances, "hierarchy": semantic_distances}, permutations, device
    )
    metrics |= found
    artefact: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "gates",
        "class_names": list(class_names),
        "activation": condensed(pairs.activation),
        "self_activation": [digits(value) for value in own.tolist()],
        "distance": condensed(distances["activation"]),
        "self_cosine": condensed(distances["self_cosine"]),
        "feature_distance": condensed(feature_distances),
        "semantic_distance": None if semantic_distances is None else condensed(semantic_distances),
        "groups": None if groups is None else list(groups),
        "correlations": correlations,
        "notes": list(notes),
        "pair_gates": pair_heat(gates, default_pairs(distances["activation"]), device),
    }
    tree_metrics, tree_artefact = tree_of(distances["activation"], linkage, groups)
    return GateAnalysis(
        {**metrics, **tree_metrics}, {**artefact, **tree_artefact, "metrics": {**metrics, **tree_metrics}}
    )


def correlate(
    distances: Mapping[str, Matrix],
    others: Mapping[str, Matrix | None],
    permutations: int,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Correlations of the gates' distances with others, as metrics and for the artefact; those that are not defined are absent.

    Args:
        distances: of the gates, by name, [C, C].
        others: by name, [C, C], NaN where not known (classes without images); None where there is none.
        permutations: see `mantel`.
        device: likewise.
    """
    metrics: dict[str, float] = {}
    correlations: dict[str, dict[str, Any]] = {}
    for other, matrix in others.items():
        if matrix is None:
            continue
        rows = np.flatnonzero(np.isfinite(np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)).any(1))
        part = np.ix_(rows, rows)
        for name, distance in distances.items():
            found = mantel(matrix[part], distance[part], permutations, device=device)
            if found is None:
                continue
            prefix = "" if name == "activation" else f"{name}_"
            metrics |= {f"{prefix}spearman_{other}": found.rho, f"{prefix}p_{other}": found.p}
            correlations.setdefault(other, {})[name] = vars(found)
    return metrics, correlations


def _signature(pairs: PairGates) -> dict[str, float]:
    """What failures are known by (`simlap.evaluate.gate_failures`). Telling pairs apart begins with three of them."""
    of, found = pairs.dimensions, {"dimensions_per_pair": pairs.per_pair}
    if len(pairs.activation) > 2:
        found |= {
            "dead_dimensions": float((of.high - of.low <= RANGE).double().mean()),
            "closed_dimensions": float((of.high <= CLOSED).double().mean()),
            "open_dimensions": float((of.low >= OPEN).double().mean()),
            "pair_std": float(of.std.mean()),
        }
        if of.directions is not None:
            found["directions"] = of.directions
    return found


def tree_of(
    distance: Matrix, linkage: Linkage, groups: Sequence[str] | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """The tree of the classes, as metrics and for the artefact."""
    tree = build_tree(distance, linkage)
    differ = len(distance) > 2 and np.ptp(distance[np.triu_indices(len(distance), 1)]) > 1e-12
    metrics: dict[str, float] = {}
    artefact: dict[str, Any] = {
        "linkage_method": linkage,
        "linkage": [[int(a), int(b), digits(height), int(n)] for a, b, height, n in tree.merges.tolist()],
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


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, list[int]]:
    """Mean features of the classes that have images, [m, d] float64, and which classes these are."""
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    sums.index_add_(0, labels, features.double())
    counts = torch.bincount(labels, minlength=num_classes)
    present = counts.nonzero()[:, 0]
    return sums[present] / counts[present, None], present.tolist()


def condensed(matrix: Matrix) -> list[float | None]:
    """The upper triangle, row by row; None where a value is not finite."""
    return [
        digits(value) if math.isfinite(value) else None for value in matrix[np.triu_indices(len(matrix), 1)].tolist()
    ]


def digits(value: float) -> float:
    """Six digits: enough for figures, and half the bytes."""
    return float(f"{value:.6g}")
