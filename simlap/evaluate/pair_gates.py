"""The gates of all class pairs: what is kept of them, and what each dimension does over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from simlap.evaluate.collapse import effective_rank
from simlap.nn.filter import FeatureFilter

Matrix = NDArray[np.float64]
_MAX_GATES = 1 << 22  # values at a time
_MAX_DIRECTIONS = 2048  # of D, for a covariance of D x D
_NO_SPREAD = 1e-6
"""Standard deviation over pairs that is float32 rounding."""


@dataclass(frozen=True)
class Dimensions:
    """What each of the D dimensions does, over the pairs a < b."""

    mean: Tensor
    """[D] float64. So are the others."""
    low: Tensor
    """Least gate of any pair."""
    high: Tensor
    """Largest."""
    std: Tensor
    """Standard deviation over the pairs."""
    directions: float | None
    """Effective rank of the gates' covariance over the pairs; None where they do not differ, or D is more than 2048."""


@dataclass(frozen=True)
class PairGates:
    """The gates of all unordered class pairs, of which no more than this is kept."""

    activation: Matrix
    """[C, C], A(a, b): mean over D of g(a, b)."""
    own: Tensor
    """[C, D] float64, g(a, a)."""
    entropy: float
    """Bernoulli entropy in nats, mean over D and all pairs a < b."""
    open_fraction: float
    """Share of gates above one half, over all pairs a < b."""
    per_pair: float
    """How many dimensions a pair opens, (sum g)^2 / sum g^2, mean over all pairs a < b."""
    dimensions: Dimensions

    @property
    def distance(self) -> Matrix:
        """The `activation` distance, [C, C]."""
        own = np.diag(self.activation)
        return (own[:, None] + own[None]) / 2 - self.activation

    @property
    def self_cosine(self) -> Matrix:
        """The `self_cosine` distance, [C, C]."""
        return cosine_distances(self.own)


def pair_gates(gates: FeatureFilter, num_classes: int, device: torch.device | str = "cpu") -> PairGates:
    """Gates of all unordered pairs (and of each class with itself) in evaluation mode, in chunks."""
    activation = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)
    own: list[Tensor] = []
    entropy = opened = open_dimensions = 0.0
    sums: _Sums | None = None
    for a, b, g in gate_chunks(gates, num_classes, device):
        activation[a, b] = activation[b, a] = g.mean(1)
        own.append(g[a == b])
        g = g[a != b]
        entropy -= float((torch.xlogy(g, g) + torch.xlogy(1 - g, 1 - g)).sum())
        opened += float((g > 0.5).sum())
        open_dimensions += float((g.sum(1).square() / g.square().sum(1).clamp(min=1e-12)).sum())
        sums = sums or _Sums(g.shape[1], g.device)
        sums.add(g)
    assert sums is not None
    pairs = max(1, sums.count)
    values = pairs * len(sums.total)
    return PairGates(
        activation.cpu().numpy(), torch.cat(own), entropy / values, opened / values, open_dimensions / pairs,
        sums.dimensions(),
    )  # fmt: skip


@torch.no_grad()
def gate_chunks(
    gates: FeatureFilter, num_classes: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Classes a <= b of all pairs, int64 [p] each, and their gates, float64 [p, D], some pairs at a time.

    In evaluation mode, without noise; the filter is left as it was.
    """
    first, second = torch.triu_indices(num_classes, num_classes, device=device)
    rows, start = 1, 0
    while start < len(first):
        part = slice(start, start + rows)
        g = gates_of(gates, first[part], second[part])
        yield first[part], second[part], g
        start += rows
        rows = max(1, _MAX_GATES // g.shape[1])  # the first row tells D


@torch.no_grad()
def gates_of(gates: FeatureFilter, first: Tensor, second: Tensor) -> Tensor:
    """Gates of the pairs (first[i], second[i]), int64 [p] each, in evaluation mode: float64 [p, D]."""
    was_training = gates.training
    gates.eval()
    g: Tensor = gates(first, second).of_rows.double()
    gates.train(was_training)
    return g


def cosine_distances(rows: Tensor) -> Matrix:
    """1 - cosine between all rows [m, d], symmetric, [m, m]."""
    unit = F.normalize(rows.double(), dim=1)
    cosine = unit @ unit.T
    distances: Matrix = (1 - (cosine + cosine.T) / 2).cpu().numpy()
    return distances


class _Sums:
    """What is added up over chunks of gates [p, D]."""

    def __init__(self, width: int, device: torch.device) -> None:
        options = {"dtype": torch.float64, "device": device}
        self.count = 0
        self.total, self.squares = torch.zeros(width, **options), torch.zeros(width, **options)  # type: ignore[call-overload]
        self.low = torch.full((width,), torch.inf, **options)  # type: ignore[call-overload]
        self.high = torch.full((width,), -torch.inf, **options)  # type: ignore[call-overload]
        self.outer = torch.zeros(width, width, **options) if width <= _MAX_DIRECTIONS else None  # type: ignore[call-overload]

    def add(self, g: Tensor) -> None:
        if not len(g):
            return
        self.count += len(g)
        self.total += g.sum(0)
        self.squares += g.square().sum(0)
        self.low, self.high = torch.minimum(self.low, g.amin(0)), torch.maximum(self.high, g.amax(0))
        if self.outer is not None:
            self.outer += g.T @ g

    def dimensions(self) -> Dimensions:
        count = max(1, self.count)
        mean = self.total / count
        std = (self.squares / count - mean.square()).clamp(min=0).sqrt()
        directions = None
        if self.outer is not None and float(std.square().mean().sqrt()) > _NO_SPREAD:
            covariance = self.outer / count - mean[:, None] * mean
            directions = effective_rank(torch.linalg.eigvalsh(covariance.cpu()).clamp(min=0))
        return Dimensions(mean.cpu(), self.low.cpu(), self.high.cpu(), std.cpu(), directions)
