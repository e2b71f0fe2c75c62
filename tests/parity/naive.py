"""The subspace InfoNCE as docs/method.md writes it, step by step, in float64 and in Python loops."""

from __future__ import annotations

import torch
from torch import Tensor


def subspace_info_nce(
    z: Tensor,
    keys: Tensor,
    gates: Tensor,
    labels: Tensor,
    pair_labels: Tensor,
    key_labels: Tensor,
    *,
    temperature: float = 0.1,
    similarity: str = "cosine",
    self_index: Tensor | None = None,
    num_positives: float | None = None,
) -> Tensor:
    """Float64 scalar, differentiable."""
    z, keys, gates = z.double(), keys.double(), gates.double()
    y, p, key_y = labels.tolist(), pair_labels.tolist(), key_labels.tolist()
    own = [-1] * len(y) if self_index is None else self_index.tolist()
    total = 0.0 * (z.sum() + keys.sum() + gates.sum())
    count = 0
    for i in range(len(y)):
        logits = [_similarity(z[i], keys[j], gates[i], similarity) / temperature for j in range(len(key_y))]
        positives = [j for j in range(len(key_y)) if key_y[j] == p[i] and j != own[i]]
        negatives = [j for j in range(len(key_y)) if key_y[j] not in (y[i], p[i])]
        for j in positives:
            total = total + torch.logsumexp(torch.stack([logits[n] for n in (j, *negatives)]), 0) - logits[j]
        count += len(positives)
    normaliser = count if num_positives is None else num_positives
    return total / normaliser if normaliser else total


def _similarity(z: Tensor, key: Tensor, gate: Tensor, kind: str) -> Tensor:
    if kind == "masked_dot":
        return (gate**2 * _over_norm(z)) @ _over_norm(key)
    return _over_norm(gate * z) @ _over_norm(gate * key)


def _over_norm(x: Tensor) -> Tensor:
    """x / |x|; a zero vector gives zeros without gradient."""
    return x / x.norm() if bool((x != 0).any()) else torch.zeros_like(x)
