"""Pair labels: which class each anchor is pulled towards (arXiv 2410.18200, section 3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

PairKind = Literal["arbitrary", "identical", "distinct"]


def pair_labels(kind: PairKind, labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """Draw the pair labels p of a batch.

    `arbitrary`: p = y[permutation of the batch]. `identical`: p = y. `distinct`: p = (y + r) mod C, r uniform in
    1..C-1.

    Args:
        labels: y, int64 [B], of the *global* batch, on the generator's device.
        num_classes: C.

    Returns:
        p, int64 [B].
    """
    if kind == "identical":
        return labels.clone()
    if kind == "arbitrary":
        return labels[torch.randperm(len(labels), generator=generator)]
    if kind == "distinct":
        if num_classes < 2:
            raise ValueError("distinct pairs need at least two classes")
        shift = torch.randint(1, num_classes, labels.shape, generator=generator)
        return (labels + shift) % num_classes
    raise ValueError(f"unknown pairs {kind!r}; choices: arbitrary, identical, distinct")
