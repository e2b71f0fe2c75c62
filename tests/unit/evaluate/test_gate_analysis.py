from __future__ import annotations

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from simlap.config.schema import OpenGate, ProductGate, SigmoidGate
from simlap.data.batch import Pairs
from simlap.evaluate import pair_gates as module
from simlap.evaluate.gate_analysis import analyse_gates, class_means
from simlap.evaluate.pair_gates import pair_gates
from simlap.nn.filter import FeatureFilter, GateOutput, build_filter

C, D = 7, 12
SMALL = {"embedding_dim": 6, "hidden_dim": 8}


class Table(FeatureFilter):
    """Gates written down: [C, C, D], symmetric."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(
        self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None, pairs: Pairs | None = None
    ) -> GateOutput:
        assert not self.training
        return GateOutput(self.table[labels, pair_labels], self.table.new_zeros(()))


def signs(weights: Tensor) -> Table:
    """As `sign` gates: 1[w_y * w_p > 0]."""
    return Table((weights[:, None] * weights[None] > 0).float())


def _table(seed: int = 0) -> Tensor:
    g = torch.rand(C, C, D, generator=torch.Generator().manual_seed(seed))
    return (g + g.transpose(0, 1)) / 2


def _images(seed: int = 0, classes: int = C) -> tuple[Tensor, Tensor]:
    labels = torch.arange(60) % classes
    return torch.randn(60, 5, generator=torch.Generator().manual_seed(seed)) + labels[:, None] / 5, labels


def test_pair_gates_equal_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_GATES", 5 * D)  # several chunks
    table = _table()
    gates = Table(table).train()
    got = pair_gates(gates, C)
    assert gates.training
    entropies, opened = [], []
    for a in range(C):
        for b in range(C):
            assert got.activation[a, b] == pytest.approx(float(table[a, b].double().mean()), abs=1e-12)
            if a < b:
                g = table[a, b].double()
                entropies.append(float(-(g * g.log() + (1 - g) * (1 - g).log()).mean()))
                opened.append(float((g > 0.5).double().mean()))
        for b in range(C):
            own, other = table[a, a].double(), table[b, b].double()
            cosine = float(own @ other / own.norm() / other.norm())
            assert got.self_cosine[a, b] == pytest.approx(1 - cosine, abs=1e-12)
            mean = (table[a, a].double().mean() + table[b, b].double().mean()) / 2 - table[a, b].double().mean()
            assert got.distance[a, b] == pytest.approx(float(mean), abs=1e-12)
    assert got.entropy == pytest.approx(np.mean(entropies))
    assert got.open_fraction == pytest.approx(np.mean(opened))


def test_of_sign_gates_the_distance_is_the_share_of_differing_signs() -> None:
    weights = torch.randn(C, D, generator=torch.Generator().manual_seed(3))
    got = pair_gates(signs(weights), C).distance
    expected = (weights.sign()[:, None] != weights.sign()[None]).double().mean(2)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-12)


def test_of_product_gates_the_distance_is_half_the_squared_difference_of_the_classes_own() -> None:
    torch.manual_seed(0)
    gates = build_filter(ProductGate(kind="product", **SMALL), C, D)
    got = pair_gates(gates, C)
    own = got.own.sqrt()  # g(a, a) = s_a^2
    expected = (own[:, None] - own[None]).square().mean(2) / 2
    np.testing.assert_allclose(got.distance, expected.numpy(), atol=1e-6)


def test_learnt_filters_are_read_without_noise_and_left_as_they_were() -> None:
    torch.manual_seed(0)
    gates = build_filter(SigmoidGate(kind="sigmoid", **SMALL), C, D).train()
    before = {name: value.clone() for name, value in gates.state_dict().items()}
    first, second = pair_gates(gates, C), pair_gates(gates, C)
    np.testing.assert_array_equal(first.activation, second.activation)
    assert all(torch.equal(value, before[name]) for name, value in gates.state_dict().items())


def test_classes_that_share_signs_are_found_again() -> None:
    """Gates that follow a hierarchy: correlation 1, pure clusters, the smallest p."""
    c = 12
    groups = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    generator = torch.Generator().manual_seed(0)
    of_group = torch.randn(3, 400, generator=generator)
    weights = of_group.repeat_interleave(4, 0) + 0.2 * torch.randn(c, 400, generator=generator)
    same = torch.tensor([[x == y for x in groups] for y in groups])
    semantic = torch.where(same, 0.5, 1.0).fill_diagonal_(0)
    labels = torch.arange(120) % c
    found = analyse_gates(
        signs(weights), class_names=[str(i) for i in range(c)], features=weights[labels], labels=labels,
        semantic=semantic, groups=groups, permutations=999,
    )  # fmt: skip
    metrics = found.metrics
    assert metrics["purity"] == metrics["dendrogram_purity"] == 1
    assert metrics["p_hierarchy"] == metrics["p_features"] == 1 / 1000
    assert metrics["spearman_features"] > 0.6  # as much as noise within the groups allows
    assert metrics["spearman_hierarchy"] > 0.6  # the hierarchy has two values, the gates many
    assert metrics["cophenetic"] > 0.95
    assert found.artefact["chance"]["purity"]["mean"] < 0.7
    assert found.artefact["chance"]["purity"]["p"] == 1 / 1000
    order = [groups[leaf] for leaf in found.artefact["leaf_order"]]
    assert sum(one != other for one, other in itertools.pairwise(order)) == 2


def test_correlations_are_scipys_and_the_artefact_holds_the_data() -> None:
    table, (features, labels) = _table(), _images()
    found = analyse_gates(
        Table(table), class_names=list("abcdefg"), features=features, labels=labels, permutations=50, notes=["a note"]
    )
    means, _ = class_means(features, labels, C)
    unit = torch.nn.functional.normalize(means, dim=1)
    upper = np.triu_indices(C, 1)
    by_features = (1 - unit @ unit.T).numpy()[upper]
    expected = spearmanr(pair_gates(Table(table), C).distance[upper], by_features).statistic
    assert found.metrics["spearman_features"] == pytest.approx(expected)
    artefact = json.loads(json.dumps(found.artefact, allow_nan=False))
    assert artefact["correlations"]["features"]["activation"]["rho"] == found.metrics["spearman_features"]
    assert artefact["feature_distance"] == pytest.approx(by_features.tolist(), rel=1e-5)
    assert len(artefact["distance"]) == len(artefact["activation"]) == C * (C - 1) // 2
    assert len(artefact["linkage"]) == C - 1
    assert sorted(artefact["leaf_order"]) == list(range(C))
    assert artefact["semantic_distance"] is artefact["groups"] is artefact["clusters"] is None
    assert artefact["notes"] == ["a note"]
    assert artefact["metrics"] == found.metrics
    assert not any("hierarchy" in name or "purity" in name for name in found.metrics)


def test_classes_without_images_are_left_out_of_the_comparison_with_features() -> None:
    features, labels = _images(classes=5)
    found = analyse_gates(
        Table(_table()), class_names=list("abcdefg"), features=features, labels=labels, permutations=9
    )
    assert "spearman_features" in found.metrics
    assert found.artefact["feature_distance"].count(None) == 5 + 6
    few, labels = _images(classes=2)
    found = analyse_gates(Table(_table()), class_names=list("abcdefg"), features=few, labels=labels, permutations=9)
    assert "spearman_features" not in found.metrics


def test_open_gates_know_no_differences() -> None:
    features, labels = _images()
    gates = build_filter(OpenGate(kind="open"), C, D)
    metrics = analyse_gates(gates, class_names=list("abcdefg"), features=features, labels=labels).metrics
    assert metrics == {
        "activation": 1.0, "self_activation": 1.0, "entropy": 0.0, "open_fraction": 1.0, "dimensions_per_pair": D,
        "dead_dimensions": 1.0, "closed_dimensions": 0.0, "open_dimensions": 1.0, "pair_std": 0.0,
    }  # fmt: skip


def test_groups_that_say_nothing_give_no_purity() -> None:
    features, labels = _images()
    for groups in (["one"] * C, list("tuvwxyz")):
        metrics = analyse_gates(
            Table(_table()),
            class_names=list("abcdefg"),
            features=features,
            labels=labels,
            groups=groups,
            permutations=9,
        ).metrics
        assert not any("purity" in name for name in metrics)


def test_two_classes() -> None:
    features, labels = _images(classes=2)
    table = _table()[:2, :2]
    metrics = analyse_gates(Table(table), class_names=["a", "b"], features=features, labels=labels).metrics
    assert set(metrics) == {"activation", "self_activation", "entropy", "open_fraction", "dimensions_per_pair"}
    assert all(math.isfinite(value) for value in metrics.values())


def test_the_rounding_of_float32_is_no_difference() -> None:
    """Identical gates, as a GPU may give them: the same numbers up to their last bit."""
    features, labels = _images()
    noise = 6e-8 * (2 * torch.rand(C, C, D, generator=torch.Generator().manual_seed(0)) - 1)
    gates = Table(0.6 + noise + noise.transpose(0, 1))
    found = analyse_gates(
        gates, class_names=list("abcdefg"), features=features, labels=labels, groups=list("aabbccc"),
        semantic=1 - torch.eye(C), permutations=9,
    )  # fmt: skip
    assert not any(re.search("spearman|purity|cophenetic|directions", name) for name in found.metrics)
    assert found.metrics["dead_dimensions"] == 1
    assert found.artefact["distance"] == found.artefact["self_cosine"] == [0.0] * 21
    assert "-0.0" not in json.dumps(found.artefact["distance"])
