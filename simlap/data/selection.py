"""Which classes and images of a dataset an experiment uses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from simlap import rng
from simlap.config.schema import Validation
from simlap.data.hierarchy import class_choices
from simlap.errors import DataError


def chosen_classes(class_names: Sequence[str], classes: Sequence[str | int] | None) -> list[int]:
    """The labels, in the dataset, of the classes that become 0, 1, ... (`data.classes`; None: all as they are).

    Raises:
        DataError: an unknown class, or one that is named twice (say, by name and by label).
    """
    if classes is None:
        return list(range(len(class_names)))
    labels: list[int] = []
    for i, wanted in enumerate(classes):
        key = f"data.classes.{i}"
        if isinstance(wanted, int):
            if not 0 <= wanted < len(class_names):
                raise DataError(f"no such label; they go from 0 to {len(class_names) - 1}", key=key, value=wanted)
            label = wanted
        else:
            named = [label for label, name in enumerate(class_names) if name == wanted]
            if not named:
                raise DataError("no such class", key=key, value=wanted, choices=class_choices(wanted, class_names))
            if len(named) > 1:
                raise DataError(
                    f"{len(named)} classes have this name; give the label instead",
                    key=key,
                    value=wanted,
                    choices=[str(label) for label in named],
                )
            label = named[0]
        if label in labels:
            raise DataError(f"names the class {class_names[label]!r} (label {label}) twice", key=key, value=wanted)
        labels.append(label)
    return labels


def fraction_rows(labels: Tensor, fraction: float) -> Tensor:
    """Rows of a share of every class, ascending: `round(fraction * size)` images, one at least.

    The first images of a permutation of the class, whose key holds nothing but the label: the same for all seeds and whatever
    other classes there are, and a smaller share is part of a larger one.

    Args:
        labels: int64 [n], as the dataset has them.
        fraction: in (0, 1].
    """
    return _drawn_rows(labels, fraction, 1, "fraction").nonzero()[:, 0]


def validation_rows(labels: Tensor, validation: Validation) -> tuple[Tensor, Tensor]:
    """Rows of the training and of the validation part, each in ascending order.

    Every class gives `round(fraction * size)` images, drawn by a key of its own: a class's part does not change when
    other classes come or go.

    Args:
        labels: int64 [n], of the training set, as the dataset has them.
    """
    held_out = _drawn_rows(labels, validation.fraction, 0, validation.split_seed, "validation")
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def _drawn_rows(labels: Tensor, fraction: float, least: int, *key: int | str) -> Tensor:
    """Bool [n]: `round(fraction * size)` rows of every class, but at least `least`."""
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        count = max(least, math.floor(fraction * len(rows) + 0.5))
        order = torch.randperm(len(rows), generator=rng.generator(*key, label))
        drawn[rows[order[:count]]] = True
    return drawn
