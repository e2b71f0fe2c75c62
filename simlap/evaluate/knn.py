"""Weighted k-nearest-neighbour classification on frozen features (Wu et al., arXiv 1805.01978)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_MAX_SIMILARITIES = 1 << 24  # 64 MiB of float32 at a time


@torch.no_grad()
def knn_top1(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    num_classes: int,
    k: Sequence[int],
    temperature: float = 0.07,
) -> dict[int, float]:
    """Share of queries whose class wins the vote of the k most similar features of the bank.

    Similarity is the cosine; a neighbour's vote weighs exp(similarity / temperature); of tied classes the lowest wins.

    Args:
        bank: [n, d].
        bank_labels: int64 [n].
        queries: [m, d].
        query_labels: int64 [m].
        k: neighbourhood sizes. One above n means all n.

    Returns:
        For every k, the accuracy in [0, 1].
    """
    if not len(bank) or not len(queries):
        raise ValueError(f"k-NN needs features, got a bank of {len(bank)} and {len(queries)} queries")
    sizes = sorted(set(k))
    if not sizes or sizes[0] < 1:
        raise ValueError(f"k must be one or more positive numbers, got {list(k)}")
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    most = min(sizes[-1], len(bank))
    correct = dict.fromkeys(sizes, 0)
    chunk = max(1, _MAX_SIMILARITIES // len(bank))
    for part, labels in zip(queries.split(chunk), query_labels.split(chunk), strict=True):
        similarity, neighbours = (part @ bank.T).topk(most, dim=1)  # [q, most], descending
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # the common factor changes no vote
        classes = bank_labels[neighbours]  # [q, most]
        votes = weights.new_zeros(len(part), num_classes)
        counted = 0
        for size in sizes:
            new = slice(counted, min(size, most))
            votes.scatter_add_(1, classes[:, new], weights[:, new])
            counted = min(size, most)
            correct[size] += int((votes.argmax(1) == labels).sum())
    return {size: correct[size] / len(queries) for size in k}
