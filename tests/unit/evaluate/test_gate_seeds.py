from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from simlap.evaluate.gate_analysis import analyse_gates
from simlap.evaluate.gate_seeds import merge_seeds, seed_agreement
from tests.unit.evaluate.test_gate_analysis import C, Table, _images, _table

GROUPS = list("aaabbbb")


def _artefact(seed: int, **options: Any) -> dict[str, Any]:
    features, labels = _images(seed)
    semantic = torch.tensor([[float(one != other) for one in GROUPS] for other in GROUPS])
    found = analyse_gates(
        Table(_table(seed)), class_names=list("abcdefg"), features=features, labels=labels, semantic=semantic,
        groups=GROUPS, permutations=50, **options,
    )  # fmt: skip
    return json.loads(json.dumps(found.artefact))  # type: ignore[no-any-return]


def test_the_mean_over_seeds_and_what_is_computed_of_it() -> None:
    artefacts = {seed: _artefact(seed) for seed in (3, 5, 8)}
    merged = json.loads(json.dumps(merge_seeds(artefacts, permutations=50), allow_nan=False))
    distances = [np.array(one["distance"]) for one in artefacts.values()]
    assert merged["distance"] == pytest.approx(np.mean(distances, axis=0), rel=1e-5)
    between = [spearmanr(one, other).statistic for one, other in itertools.combinations(distances, 2)]
    assert merged["agreement"] == pytest.approx(
        {"mean": np.mean(between), "low": min(between), "high": max(between), "pairs": 3}
    )
    metrics = merged["metrics"]
    expected = spearmanr(np.mean(distances, axis=0), np.array(artefacts[3]["semantic_distance"])).statistic
    assert metrics["spearman_hierarchy"] == pytest.approx(expected)
    for name in ("activation", "entropy", "pair_std", "directions", "dead_dimensions"):
        assert metrics[name] == pytest.approx(np.mean([one["metrics"][name] for one in artefacts.values()]))
    assert merged["seeds"] == {str(seed): one["metrics"] for seed, one in artefacts.items()}
    assert sorted(merged["leaf_order"]) == list(range(C))
    assert {"purity", "cophenetic"} <= metrics.keys()


def test_one_seed_is_itself() -> None:
    artefact = _artefact(0)
    merged = merge_seeds({0: artefact}, permutations=50)
    assert merged["agreement"] is None
    for name, value in artefact["metrics"].items():
        assert merged["metrics"][name] == pytest.approx(value), name
    for key in ("distance", "linkage", "leaf_order", "groups", "feature_distance"):
        assert merged[key] == artefact[key]


def test_seeds_that_know_no_differences_do_not_agree_or_disagree() -> None:
    same = np.zeros(6)
    assert seed_agreement([same, np.arange(6.0)]) is None
    assert seed_agreement([np.arange(6.0)] * 2) == {"mean": 1, "low": 1, "high": 1, "pairs": 1}


def test_other_classes_cannot_be_averaged() -> None:
    other = {**_artefact(1), "class_names": list("tuvwxyz")}
    with pytest.raises(ValueError, match="different classes"):
        merge_seeds({0: _artefact(0), 1: other})
    with pytest.raises(ValueError, match="at least one seed"):
        merge_seeds({})
