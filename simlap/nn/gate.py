"""What a feature filter is and gives: a gate in [0, 1]^D for each pair of classes (arXiv 2410.18200).

Shapes: b local rows, U distinct class pairs among them, B rows of the global batch, D embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simlap.data.batch import Pairs


class GateOutput(NamedTuple):
    """What a filter gives for b rows."""

    gates: Tensor
    """In [0, 1], float32 or wider: [b, D], or [U, D] with `index`."""
    regulariser: Tensor
    """Scalar: weight times the *sum* over rows and D; 0 for kinds without one. Divide by the size of the global batch
    for the batch mean: a mean taken here would be wrong under data parallelism, where workers may differ in rows."""
    index: Tensor | None = None  # type: ignore[assignment] # hides the method of tuples
    """int64 [b], row i has the gate gates[index[i]]; None where gates are the rows' own."""
    counts: Tensor | None = None
    """int64 [U], how many rows have each gate, where there is an index."""

    @property
    def of_rows(self) -> Tensor:
        """[b, D], each row's gate."""
        return self.gates if self.index is None else F.embedding(self.index, self.gates)


class FeatureFilter(nn.Module, ABC):
    """Class pairs to gates."""

    @abstractmethod
    def forward(
        self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None, pairs: Pairs | None = None
    ) -> GateOutput:
        """Gates of the pairs (y, p).

        Args:
            labels: [b] int64, y.
            pair_labels: [b] int64, p.
            noise: [b, D], this worker's rows of `draw_noise`. Needed in training mode by the kinds with noise, ignored
                otherwise.
            pairs: the distinct pairs among the rows. Given, what depends on the pair alone is done once for each: the
                same gates, gradients and running statistics, of fewer rows. Data-parallel workers must agree on whether.
        """

    def draw_noise(self, num_rows: int, generator: torch.Generator) -> Tensor | None:
        """Noise for the *global* batch, to be sliced by worker: [B, D] float32 on the generator's device, or None."""
        return None


def per_pair(gates: Tensor, regulariser: Tensor, pairs: Pairs | None) -> GateOutput:
    """Gates of the rows, or of the pairs."""
    if pairs is None:
        return GateOutput(gates, regulariser)
    return GateOutput(gates, regulariser, pairs.index, pairs.counts)


def open_gates(num_rows: int, embed_dim: int, device: torch.device) -> GateOutput:
    """g = 1 for all rows: [1, D], with an index."""
    gates, index = torch.ones(1, embed_dim, device=device), torch.zeros(num_rows, dtype=torch.int64, device=device)
    return GateOutput(gates, gates.new_zeros(()), index, torch.full((1,), num_rows, device=device))


def gate_penalty(gates: Tensor, counts: Tensor | None = None) -> Tensor:
    """Sum over rows of the mean over D of 4 g (1 - g), which pushes gates towards 0 and 1.

    Args:
        gates: [b, D] in [0, 1]; [U, D] with counts.
        counts: [U], how many rows have each gate.

    Returns:
        Scalar, at most b. Divide by the size of the global batch, for the reason `GateOutput.regulariser` gives.
    """
    penalties = (4.0 * gates * (1.0 - gates)).mean(dim=1)
    return penalties.sum() if counts is None else (penalties * counts).sum()
