"""How the classes of a dataset relate: a tree of groups, and distances in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from simlap.errors import DataError

Hierarchy: TypeAlias = "dict[str, list[str] | Hierarchy]"
"""A group's name to its class names, or to smaller groups. Every class is in exactly one innermost group."""


def check_hierarchy(tree: Mapping[str, object], class_names: Sequence[str], *, key: str) -> Hierarchy:
    """A hierarchy as the file gives it, checked against the classes. A whole number stands for the class of that name.

    Args:
        tree: to be checked.
        class_names: names of the labels 0, 1, ...
        key: the setting that holds the tree.

    Raises:
        DataError: what is no group, an empty group, or an unknown, repeated or missing class.
    """
    checked = _checked(tree, key)
    seen: dict[str, str] = {}
    for group, name in _leaves(checked, key):
        if name not in class_names:
            raise DataError("no such class", key=group, value=name, choices=class_choices(name, class_names))
        if name in seen:
            raise DataError(f"this class is also in {seen[name]}", key=group, value=name)
        seen[name] = group
    missing = [name for name in class_names if name not in seen]
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise DataError(f"every class must be in a group; missing: {shown}", key=key)
    return checked


def class_choices(wrong: object, class_names: Sequence[str]) -> list[str]:
    """The class names for a message about a wrong one: all of them, or the closest ten of many."""
    if len(class_names) <= 30:
        return list(class_names)
    return difflib.get_close_matches(str(wrong), class_names, n=10, cutoff=0.0)


def restrict(hierarchy: Hierarchy, class_names: Sequence[str]) -> Hierarchy:
    """The part of a hierarchy that some classes span; groups left empty go away."""
    kept: Hierarchy = {}
    for group, members in hierarchy.items():
        if isinstance(members, dict):
            inner: list[str] | Hierarchy = restrict(members, class_names)
        else:
            inner = [name for name in members if name in class_names]
        if inner:
            kept[group] = inner
    return kept


def semantic_distances(hierarchy: Hierarchy, class_names: Sequence[str]) -> Tensor:
    """Distances of the classes in the tree, float64 [C, C] in [0, 1]: symmetric, zero on the diagonal, an ultrametric.

    d(a, b) = height(lowest common ancestor of a and b) / height(root), where a node's height is the length of the longest path
    down to a class (Barz & Denzler, "Hierarchy-based Image Embeddings for Semantic Image Retrieval", WACV 2019, eq. 1).

    Args:
        hierarchy: checked: every class occurs once.
        class_names: names of the labels 0, 1, ...
    """
    numbers = {name: label for label, name in enumerate(class_names)}
    distances = torch.zeros(len(class_names), len(class_names), dtype=torch.float64)

    def visit(members: list[str] | Hierarchy) -> tuple[int, list[int]]:
        """Height of a node and the classes below it, whose distances it sets where they meet here."""
        if isinstance(members, dict):
            below = [visit(inner) for inner in members.values()]
        else:
            below = [(0, [numbers[name]]) for name in members]
        height = 1 + max(child_height for child_height, _ in below)
        labels = torch.tensor([label for _, child in below for label in child])
        branches = torch.tensor([i for i, (_, child) in enumerate(below) for _ in child])
        met_here = branches[:, None] != branches[None]
        rows, columns = met_here.nonzero().unbind(1)
        distances[labels[rows], labels[columns]] = height
        return height, labels.tolist()

    height, _ = visit(hierarchy)
    return distances / height


def top_groups(hierarchy: Hierarchy, class_names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """The group that each class belongs to at the top level: int64 [C], numbers into the groups' names, which follow."""
    names = tuple(hierarchy)
    groups = torch.empty(len(class_names), dtype=torch.int64)
    for number, members in enumerate(hierarchy.values()):
        for _, name in _leaves(members, ""):
            groups[class_names.index(name)] = number
    return groups, names


def _leaves(members: list[str] | Hierarchy, path: str) -> Iterator[tuple[str, str]]:
    """Path of its innermost group and name of each class."""
    if isinstance(members, dict):
        for group, inner in members.items():
            yield from _leaves(inner, f"{path}.{group}")
    else:
        for name in members:
            yield path, name


def _checked(tree: Mapping[str, object], path: str) -> Hierarchy:
    if not tree:
        raise DataError("is empty; a group holds class names or smaller groups", key=path)
    checked: Hierarchy = {}
    for group, members in tree.items():
        here = f"{path}.{group}"
        if isinstance(members, Mapping):
            checked[group] = _checked(members, here)
        elif isinstance(members, list | tuple):
            if not members:
                raise DataError("is empty; a group holds class names or smaller groups", key=here)
            checked[group] = [_name(member, here) for member in members]
        else:
            raise DataError("must be a list of class names or a mapping of smaller groups", key=here, value=members)
    return checked


def _name(member: object, path: str) -> str:
    if isinstance(member, bool) or not isinstance(member, str | int):
        raise DataError("must be a class name", key=path, value=member)
    return str(member)
