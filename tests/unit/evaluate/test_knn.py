from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from simlap.evaluate import knn, knn_top1


def _features(n: int, d: int = 6, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    return centres[labels] + torch.randn(n, d, generator=generator), labels


def _naive(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, k: int, temperature: float) -> float:
    right = 0
    for query, label in zip(queries.double(), labels.tolist(), strict=True):
        found = []
        for feature, its_label in zip(bank.double(), bank_labels.tolist(), strict=True):
            cosine = float(query @ feature / (query.norm() * feature.norm()))
            found.append((cosine, its_label))
        votes: dict[int, float] = {}
        for cosine, its_label in sorted(found, reverse=True)[:k]:
            votes[its_label] = votes.get(its_label, 0.0) + math.exp(cosine / temperature)
        right += max(votes, key=lambda c: votes[c]) == label
    return right / len(labels)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_the_loop(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, bank_labels = _features(60)
    queries, labels = _features(45, seed=1)
    ks = (20, 1, 5, 60)
    monkeypatch.setattr(knn, "_MAX_SIMILARITIES", 60 * 7)  # several chunks
    got = knn_top1(bank, bank_labels, queries, labels, num_classes=4, k=ks, temperature=temperature)
    assert list(got) == list(ks)
    for k in ks:
        assert got[k] == _naive(bank, bank_labels, queries, labels, k, temperature)
    assert len(set(got.values())) > 1


def test_k_beyond_the_bank_means_all_of_it() -> None:
    bank, bank_labels = _features(30)
    queries, labels = _features(40, seed=1)
    got = knn_top1(bank, bank_labels, queries, labels, num_classes=4, k=(30, 50, 100))
    assert got[30] == got[50] == got[100]


def test_length_of_features_does_not_matter_and_low_temperatures_are_finite() -> None:
    bank, bank_labels = _features(30)
    queries, labels = _features(40, seed=1)
    plain = knn_top1(bank, bank_labels, queries, labels, num_classes=4, k=(7,), temperature=0.002)
    scaled = knn_top1(bank * 16, bank_labels, queries / 8, labels, num_classes=4, k=(7,), temperature=0.002)
    nearest = knn_top1(bank, bank_labels, queries, labels, num_classes=4, k=(1,))
    assert plain == scaled
    assert abs(plain[7] - nearest[1]) <= 0.05  # exp(similarity / 0.002) leaves nearly only the nearest a say


def test_a_bank_finds_itself() -> None:
    bank, labels = _features(50)
    assert knn_top1(bank, labels, bank, labels, num_classes=4, k=(1,)) == {1: 1.0}


def test_zero_features_vote_for_something() -> None:
    labels = torch.tensor([1, 1, 1, 0])
    got = knn_top1(torch.zeros(4, 3), labels, torch.zeros(4, 3), labels, num_classes=2, k=(4,))
    assert got == {4: 0.75}


def test_errors() -> None:
    bank, labels = _features(5)
    with pytest.raises(ValueError, match="bank of 0"):
        knn_top1(bank[:0], labels[:0], bank, labels, num_classes=4, k=(1,))
    for ks in ((), (0, 1)):
        with pytest.raises(ValueError, match="k must be"):
            knn_top1(bank, labels, bank, labels, num_classes=4, k=ks)
