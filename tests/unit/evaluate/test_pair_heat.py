from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from simlap.errors import ConfigError
from simlap.evaluate.pair_heat import MAX_DIMENSIONS, ChosenPair, default_pairs, named_pairs, pair_heat, with_own
from tests.unit.evaluate.test_gate_analysis import Table

NAMES = ["cat", "dog", "a:b", "ship"]


def test_pairs_by_name() -> None:
    assert named_pairs(["cat:dog", "dog:dog", "cat:dog"], NAMES) == [
        ChosenPair(0, 1, "named"),
        ChosenPair(1, 1, "named"),
    ]
    assert named_pairs(["a:b:cat", "ship:a:b"], NAMES) == [ChosenPair(2, 0, "named"), ChosenPair(3, 2, "named")]


@pytest.mark.parametrize(
    ("text", "words"),
    [("cat", ["CLASS:CLASS", "'cat'"]), ("cat:dgo", ["no such class", "'dgo'", "did you mean 'dog'", "ship"])],
)
def test_a_wrong_pair(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError, match="--pair") as error:
        named_pairs([text], NAMES)
    for word in words:
        assert word in str(error.value)


def test_closest_farthest_and_own() -> None:
    distance = np.array([[0, 1, 5, 2], [1, 0, 6, 3], [5, 6, 0, 4], [2, 3, 4, 0]], dtype=float)
    found = default_pairs(distance, 2)
    assert [(p.first, p.second, p.kind) for p in found] == [
        (0, 1, "closest"), (0, 3, "closest"), (1, 2, "farthest"), (0, 2, "farthest"), (0, 0, "same class"),
        (1, 1, "same class"),
    ]  # fmt: skip
    one = default_pairs(np.zeros((2, 2)))
    assert [(p.first, p.second, p.kind) for p in one] == [
        (0, 1, "closest"), (0, 0, "same class"), (1, 1, "same class"),
    ]  # fmt: skip
    assert len({(p.first, p.second) for p in default_pairs(distance)}) == 6 + 4  # no pair twice


def test_named_pairs_bring_their_classes_along() -> None:
    pairs = named_pairs(["cat:dog", "dog:dog"], NAMES)
    assert with_own(pairs) == [*pairs, ChosenPair(0, 0, "same class")]


def test_columns_are_the_gates_in_an_order_that_puts_like_beside_like() -> None:
    table = torch.zeros(3, 3, 8)
    table[..., ::2] = 1
    table[0, 1] = table[1, 0] = torch.tensor([1, 0, 0, 0, 1, 0, 0, 0.0])
    pairs = [ChosenPair(0, 1, "closest"), ChosenPair(2, 2, "same class")]
    heat = json.loads(json.dumps(pair_heat(Table(table), pairs)))
    assert heat["pairs"] == [[0, 1, "closest"], [2, 2, "same class"]]
    assert sorted(heat["dimensions"]) == list(range(8))
    assert heat["of"] == 8
    for (a, b, _), row in zip(heat["pairs"], heat["gates"], strict=True):
        assert row == table[a, b, heat["dimensions"]].tolist()
    columns = list(zip(*heat["gates"], strict=True))
    assert sum(one != other for one, other in itertools.pairwise(columns)) == 2  # three kinds, side by side
    assert columns[0] == (1, 1)


def test_of_very_many_dimensions_those_that_differ() -> None:
    table = torch.zeros(2, 2, 3 * MAX_DIMENSIONS)
    table[0, 1, MAX_DIMENSIONS : MAX_DIMENSIONS + 5] = table[1, 0, MAX_DIMENSIONS : MAX_DIMENSIONS + 5] = 1
    heat = pair_heat(Table(table), default_pairs(np.zeros((2, 2))))
    assert heat["of"] == 3 * MAX_DIMENSIONS
    assert len(heat["dimensions"]) == MAX_DIMENSIONS
    assert set(range(MAX_DIMENSIONS, MAX_DIMENSIONS + 5)) <= set(heat["dimensions"])
