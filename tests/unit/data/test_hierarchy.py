from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simlap.data.hierarchy import Hierarchy, check_hierarchy, restrict, semantic_distances, top_groups
from simlap.data.known_hierarchies import CIFAR10, CIFAR100, FASHION_MNIST, known_hierarchy
from simlap.errors import DataError

Path = tuple[str, ...]


@st.composite
def trees(draw: st.DrawFn) -> tuple[Hierarchy, list[str]]:
    """A hierarchy of up to 12 classes, and their names in some order."""
    names = [f"c{i}" for i in range(draw(st.integers(2, 12)))]

    def divide(members: list[str], depth: int) -> Any:
        if depth == 3 or len(members) == 1 or draw(st.booleans()):
            return members
        groups: dict[int, list[str]] = {}
        for member in members:
            groups.setdefault(draw(st.integers(0, 2)), []).append(member)
        return {f"g{number}": divide(group, depth + 1) for number, group in groups.items()}

    tree = divide(names, 0)
    tree = tree if isinstance(tree, dict) else {"all": tree}
    return tree, draw(st.permutations(names))


def _paths(members: Any, above: Path = ()) -> Iterator[Path]:
    """The groups above every class, and the class."""
    if isinstance(members, dict):
        for group, inner in members.items():
            yield from _paths(inner, (*above, group))
    else:
        for name in members:
            yield (*above, name)


@given(trees())
def test_distances_are_heights_of_common_ancestors(case: tuple[Hierarchy, list[str]]) -> None:
    tree, names = case
    paths = {path[-1]: path for path in _paths(tree)}
    height = max(map(len, paths.values()))
    distances = semantic_distances(tree, names)
    for a, b in combinations(range(len(names)), 2):
        one, other = paths[names[a]], paths[names[b]]
        depth = next(i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y)
        below = [len(path) - depth for path in paths.values() if path[:depth] == one[:depth]]
        assert distances[a, b] == max(below) / height


@given(trees())
def test_distances_are_an_ultrametric(case: tuple[Hierarchy, list[str]]) -> None:
    d = semantic_distances(*case)
    assert torch.equal(d, d.T)
    assert torch.equal(d == 0, torch.eye(len(d), dtype=torch.bool))
    assert float(d.max()) <= 1
    assert bool((d[:, None, :] <= torch.maximum(d[:, :, None], d[None]) + 1e-12).all())  # d(a,c) <= max(d(a,b), d(b,c))


@given(trees(), st.data())
def test_a_part_of_a_hierarchy_orders_distances_as_the_whole(
    case: tuple[Hierarchy, list[str]], data: st.DataObject
) -> None:
    tree, names = case
    some = data.draw(st.lists(st.sampled_from(names), min_size=2, unique=True))
    part = restrict(tree, some)
    assert check_hierarchy(part, some, key="x") == part
    rows = torch.tensor([names.index(name) for name in some])
    whole = semantic_distances(tree, names)[rows][:, rows].flatten()
    inner = semantic_distances(part, some).flatten()
    closer = whole[:, None] < whole[None]
    assert bool((inner[:, None] <= inner[None])[closer].all())


@given(trees())
def test_top_groups_are_those_of_the_tree(case: tuple[Hierarchy, list[str]]) -> None:
    tree, names = case
    groups, group_names = top_groups(tree, names)
    first = {path[-1]: path[0] for path in _paths(tree)}
    assert [group_names[int(number)] for number in groups] == [first[name] for name in names]


def test_cifar10_by_hand() -> None:
    names = ["cat", "dog", "deer", "truck"]
    expected = torch.tensor([[0, 1, 2, 3], [1, 0, 2, 3], [2, 2, 0, 3], [3, 3, 3, 0]], dtype=torch.float64) / 3
    torch.testing.assert_close(semantic_distances(restrict(CIFAR10, names), names), expected)


def test_known_datasets_are_recognised_by_their_names() -> None:
    for tree, count in ((CIFAR10, 10), (CIFAR100, 100), (FASHION_MNIST, 10)):
        names = [path[-1] for path in _paths(tree)]
        assert len(set(names)) == count
        assert known_hierarchy(names[::-1]) == tree
        assert known_hierarchy(names[1:]) is None
        assert check_hierarchy(tree, names, key="x") == tree
    assert known_hierarchy([str(digit) for digit in range(10)]) is None


def test_numbers_stand_for_the_classes_of_that_name() -> None:
    assert check_hierarchy({"even": [0, 2], "odd": [1]}, ("0", "1", "2"), key="x") == {"even": ["0", "2"], "odd": ["1"]}


@pytest.mark.parametrize(
    ("tree", "key", "parts"),
    [
        (
            {"a": ["cat", "dgo"], "b": ["emu"]},
            "x.hierarchy.a",
            ["'dgo'", "did you mean 'dog'", "Valid: cat, dog, emu"],
        ),
        (
            {"a": ["cat", "dog"], "b": {"c": ["emu", "cat"]}},
            "x.hierarchy.b.c",
            ["'cat'", "also in x.hierarchy.a"],
        ),
        ({"a": ["cat", "cat", "dog", "emu"]}, "x.hierarchy.a", ["'cat'", "also in"]),
        ({"a": ["cat"]}, "x.hierarchy", ["missing: 'dog', 'emu'"]),
        ({}, "x.hierarchy", ["is empty"]),
        ({"a": ["cat", "dog", "emu"], "b": []}, "x.hierarchy.b", ["is empty"]),
        ({"a": ["cat", "dog", "emu"], "b": {}}, "x.hierarchy.b", ["is empty"]),
        ({"a": "cat"}, "x.hierarchy.a", ["must be a list", "'cat'"]),
        ({"a": ["cat", "dog", {"emu": 1}]}, "x.hierarchy.a", ["must be a class name"]),
        ({"a": ["cat", "dog", True]}, "x.hierarchy.a", ["must be a class name", "True"]),
    ],
)
def test_wrong_hierarchies(tree: dict[str, Any], key: str, parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        check_hierarchy(tree, ("cat", "dog", "emu"), key="x.hierarchy")
    assert caught.value.key == key
    for part in parts:
        assert part in str(caught.value)


def test_of_many_classes_only_the_closest_are_named() -> None:
    names = [f"class {i:03d}" for i in range(500)]
    with pytest.raises(DataError) as caught:
        check_hierarchy({"a": ["class 004x"]}, names, key="x")
    assert len(caught.value.choices) == 10
    assert "class 004" in caught.value.choices
