from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simlap import rng
from simlap.data.pairs import PairKind, pair_labels

BATCHES = st.lists(st.integers(0, 6), min_size=1, max_size=40)


@given(BATCHES, st.integers(0, 100))
def test_arbitrary_permutes_the_labels(labels: list[int], seed: int) -> None:
    pairs = pair_labels("arbitrary", torch.tensor(labels), 7, rng.generator(seed))
    assert sorted(pairs.tolist()) == sorted(labels)


@given(BATCHES, st.integers(0, 100))
def test_distinct_never_pairs_a_class_with_itself(labels: list[int], seed: int) -> None:
    pairs = pair_labels("distinct", torch.tensor(labels), 7, rng.generator(seed))
    assert all(0 <= p < 7 and p != y for p, y in zip(pairs.tolist(), labels, strict=True))


def test_distinct_is_uniform_over_the_other_classes() -> None:
    pairs = pair_labels("distinct", torch.full((30_000,), 2), 4, rng.generator(0))
    counts = torch.bincount(pairs, minlength=4)
    assert counts[2] == 0
    assert (counts[[0, 1, 3]] - 10_000).abs().max() < 400  # five standard deviations


def test_arbitrary_moves_labels() -> None:
    labels = torch.arange(1000)
    assert (pair_labels("arbitrary", labels, 1000, rng.generator(0)) == labels).sum() < 10


def test_identical_copies() -> None:
    labels = torch.tensor([3, 1, 1])
    assert torch.equal(pair_labels("identical", labels, 4, rng.generator(0)), labels)


def test_errors() -> None:
    with pytest.raises(ValueError, match="two classes"):
        pair_labels("distinct", torch.zeros(3, dtype=torch.int64), 1, rng.generator(0))
    with pytest.raises(ValueError, match="choices: arbitrary, identical, distinct"):
        pair_labels(cast(PairKind, "random"), torch.zeros(3, dtype=torch.int64), 2, rng.generator(0))
