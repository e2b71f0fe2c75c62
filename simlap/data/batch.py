"""What a training step works on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Mix:
    """Partners of mixup or cutmix: row i is `weight[i]` of its own label and the rest of its partner's."""

    labels: Tensor
    """int64 [b], the partners' classes."""
    weight: Tensor
    """float32 [b], share of the row's own image."""


@dataclass(frozen=True)
class Pairs:
    """The distinct unordered class pairs (y, p) among a worker's rows: gates depend on nothing else."""

    labels: Tensor
    """int64 [u], the smaller class of each pair."""
    pair_labels: Tensor
    """int64 [u], the larger one."""
    index: Tensor
    """int64 [b], which pair each row has."""
    counts: Tensor
    """int64 [u], how many rows have each pair."""

    @classmethod
    def of(cls, labels: Tensor, pair_labels: Tensor) -> Pairs:
        """Of rows' classes y and p, int64 [b]. Waits for their device: meant for the CPU."""
        low, high = torch.minimum(labels, pair_labels), torch.maximum(labels, pair_labels)
        classes = high.max() + 1  # one number for each pair: `unique` is three times as slow on columns
        distinct, index, counts = (low * classes + high).unique(return_inverse=True, return_counts=True)
        return cls(distinct // classes, distinct % classes, index, counts)


@dataclass
class Batch:
    """One worker's rows of a global batch.

    The global batch has B = `train.batch_size` x views rows; views of an image are next to each other. Worker r of W holds
    the images r::W with all their views. Concatenated in rank order, its rows begin at `offset`.
    """

    images: Tensor
    """float32 [b, c, s, s], augmented and normalised."""
    labels: Tensor
    """y, int64 [b]"""
    pair_labels: Tensor
    """p, int64 [b]; the views of an image share it."""
    rows: Tensor
    """int64 [b], row numbers in the global batch."""
    samples: Tensor
    """int64 [b], number of each row's image in the training part."""
    global_size: int
    """B, rows of the global batch."""
    offset: int = 0
    """Where this worker's rows begin when all workers' rows are concatenated in rank order."""
    views: int = 1
    """Rows of each image."""
    pairs: Pairs | None = None
    """Of this worker's rows, where the whole batch has at least twice as many rows as distinct pairs."""
    mix: Mix | None = None
    """Where mixup or cutmix is on, and this batch is mixed."""

    def with_images(self, images: Tensor) -> Batch:
        """The same rows with other images."""
        return replace(self, images=images)
