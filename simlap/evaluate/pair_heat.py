"""The gates of some class pairs side by side, rows and columns in an order that shows what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from simlap.data.hierarchy import class_choices
from simlap.errors import ConfigError
from simlap.evaluate.pair_gates import gates_of
from simlap.nn.filter import FeatureFilter

Matrix = NDArray[np.float64]
Kind = Literal["closest", "farthest", "same class", "named"]
SHOWN_PAIRS = 6
"""Of each kind."""
MAX_DIMENSIONS = 512
"""With more, those that differ most over the chosen pairs are shown."""
_MAX_ORDERED = 300  # as in `simlap.evaluate.dendrogram`


@dataclass(frozen=True)
class ChosenPair:
    """A pair of classes, and why it is shown."""

    first: int
    second: int
    kind: Kind


def named_pairs(texts: Sequence[str], class_names: Sequence[str]) -> list[ChosenPair]:
    """Pairs written `cat:dog`; a class with itself is a pair, too. A name may hold a colon itself.

    Raises:
        ConfigError: no pair, or a class that does not exist.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    found = []
    for text in texts:
        cuts = [(text[:at], text[at + 1 :]) for at, char in enumerate(text) if char == ":"]
        if not cuts:
            raise ConfigError("a pair is written CLASS:CLASS", key="--pair", value=text)
        known = [cut for cut in cuts if all(name in numbers for name in cut)]
        if not known:
            best = max(cuts, key=lambda cut: sum(name in numbers for name in cut))
            wrong = next(name for name in best if name not in numbers)
            raise ConfigError("no such class", key="--pair", value=wrong, choices=class_choices(wrong, class_names))
        one, other = (numbers[name] for name in known[0])
        found.append(ChosenPair(one, other, "named"))
    return list(dict.fromkeys(found))


def default_pairs(distance: Matrix, count: int = SHOWN_PAIRS) -> list[ChosenPair]:
    """The closest pairs, the farthest, and classes with themselves: those that these pairs are made of come first.

    Args:
        distance: [C, C], of the gates.
        count: at most so many of each; no pair is shown twice.
    """
    c = len(distance)
    first, second = np.triu_indices(c, 1)
    order = distance[first, second].argsort(kind="stable")
    near = order[: min(count, (len(order) + 1) // 2)]
    far = order[::-1][: min(count, len(order) // 2)]
    kinds: tuple[tuple[Kind, Any], ...] = (("closest", near), ("farthest", far))
    mixed = [ChosenPair(int(first[i]), int(second[i]), kind) for kind, rows in kinds for i in rows]
    classes = dict.fromkeys([*(label for pair in mixed for label in (pair.first, pair.second)), *range(c)])
    return mixed + [ChosenPair(label, label, "same class") for label in list(classes)[:count]]


def with_own(pairs: Sequence[ChosenPair]) -> list[ChosenPair]:
    """The pairs, and after them each of their classes with itself, where that is not among them."""
    labels = dict.fromkeys(label for pair in pairs for label in (pair.first, pair.second))
    there = {pair.first for pair in pairs if pair.first == pair.second}
    return [*pairs, *(ChosenPair(label, label, "same class") for label in labels if label not in there)]


def pair_heat(gates: FeatureFilter, pairs: Sequence[ChosenPair], device: torch.device | str = "cpu") -> dict[str, Any]:
    """The pairs' gates, JSON-able: `pairs` as [first, second, kind], `gates` by pair and dimension, `dimensions` in the order
    of the columns, and `of`, how many dimensions there are.

    Columns are ordered by clustering them (average linkage of their Euclidean distances over the shown pairs), open ones first.
    """
    first = torch.tensor([pair.first for pair in pairs], device=device)
    second = torch.tensor([pair.second for pair in pairs], device=device)
    g: Matrix = gates_of(gates, first, second).cpu().numpy()
    columns = np.arange(g.shape[1])
    if len(columns) > MAX_DIMENSIONS:
        columns = np.sort(g.std(0).argsort(kind="stable")[::-1][:MAX_DIMENSIONS])
    columns = columns[_ordered(g[:, columns])]
    return {
        "pairs": [[pair.first, pair.second, pair.kind] for pair in pairs],
        "dimensions": columns.tolist(),
        "of": g.shape[1],
        "gates": np.round(g[:, columns], 3).tolist(),
    }


def _ordered(g: Matrix) -> NDArray[np.int64]:
    """Columns of g [p, D] so that similar ones are neighbours."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    width = g.shape[1]
    by_mean: NDArray[np.int64] = g.mean(0).argsort(kind="stable")[::-1].astype(np.int64)
    if width < 3:
        return by_mean
    merges = linkage(g.T, "average", optimal_ordering=width <= _MAX_ORDERED)
    order: NDArray[np.int64] = leaves_list(merges).astype(np.int64)
    half = width // 2
    opened = g.mean(0)[order]
    if opened[:half].mean() < opened[-half:].mean():
        order = order[::-1]
    return order
