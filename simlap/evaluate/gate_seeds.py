"""What runs that differ in their seed alone say together of the classes: mean distances, and how far the seeds agree."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simlap.evaluate.class_map import rank_correlation
from simlap.evaluate.gate_analysis import SCHEMA_VERSION, condensed, correlate, digits, tree_of

Matrix = NDArray[np.float64]
OF_THE_MEAN = ("spearman_", "p_", "self_cosine_", "cophenetic", "purity", "dendrogram_purity")
"""Metrics that are computed of the mean distances, not averaged over seeds."""


def merge_seeds(artefacts: Mapping[int, Mapping[str, Any]], *, permutations: int = 9999) -> dict[str, Any]:
    """One artefact of several, as `analyse_gates` makes them, that a page can be made of as of any.

    Distances, shares and other metrics are means over the seeds; correlations, p-values and the tree are those of the
    mean distances. `seeds` holds every seed's own metrics, and `agreement` what `seed_agreement` finds. Dimensions of
    different seeds have nothing to do with each other, so there is no `pair_gates`.

    Args:
        artefacts: by seed, of the same classes.
        permutations: of the classes, for the p-values.
    """
    if not artefacts:
        raise ValueError("at least one seed is needed")
    first = next(iter(artefacts.values()))
    names, groups = first["class_names"], first["groups"]
    if any(one["class_names"] != names for one in artefacts.values()):
        raise ValueError("the seeds have different classes")
    c = len(names)
    means = {
        key: np.mean([_array(one[key]) for one in artefacts.values()], axis=0)
        for key in ("activation", "self_activation", "distance", "self_cosine", "feature_distance")
    }
    semantic = first["semantic_distance"]
    distances = {"activation": _square(means["distance"], c), "self_cosine": _square(means["self_cosine"], c)}
    others = {
        "features": _square(means["feature_distance"], c),
        "hierarchy": None if semantic is None else _square(_array(semantic), c),
    }
    found, correlations = correlate(distances, others, permutations)
    tree_metrics, tree = tree_of(distances["activation"], first["linkage_method"], groups)
    metrics = {**mean_metrics({seed: one["metrics"] for seed, one in artefacts.items()}), **found, **tree_metrics}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "gates_of_seeds",
        "class_names": names,
        "self_activation": [digits(value) for value in means["self_activation"].tolist()],
        **{
            key: condensed(_square(means[key], c))
            for key in ("activation", "distance", "self_cosine", "feature_distance")
        },
        "semantic_distance": semantic,
        "groups": groups,
        "correlations": correlations,
        "notes": list(dict.fromkeys(note for one in artefacts.values() for note in one["notes"])),
        "metrics": metrics,
        "seeds": {str(seed): one["metrics"] for seed, one in artefacts.items()},
        "agreement": seed_agreement([_array(one["distance"]) for one in artefacts.values()]),
        **tree,
    }


def mean_metrics(by_seed: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Means of the metrics that all seeds have and that are no correlations."""
    shared = set.intersection(*(set(metrics) for metrics in by_seed.values()))
    first = next(iter(by_seed.values()))
    wanted = [name for name in first if name in shared and not name.startswith(OF_THE_MEAN)]
    return {name: fmean(metrics[name] for metrics in by_seed.values()) for name in wanted}


def seed_agreement(distances: list[Matrix]) -> dict[str, float] | None:
    """Spearman's correlation of condensed distances between every two of them: mean, least and largest.

    None where there are no two, or one of them has no differences.
    """
    found = [rank_correlation(one, other) for one, other in itertools.combinations(distances, 2)]
    values = [value for value in found if value is not None]
    if not values or len(values) < len(found):
        return None
    return {"mean": fmean(values), "low": min(values), "high": max(values), "pairs": len(values)}


def _array(values: list[float | None]) -> Matrix:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _square(values: Matrix, c: int) -> Matrix:
    """A symmetric matrix, its diagonal 0."""
    matrix = np.zeros((c, c))
    matrix[np.triu_indices(c, 1)] = values
    square: Matrix = matrix + matrix.T
    return square
