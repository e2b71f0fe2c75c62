"""Filters that learn (arXiv 2410.18200).

Shapes: b local rows, U distinct class pairs among them, B rows of the global batch, C classes, E label embedding width,
H hidden width, D embedding width. All share m(v) = Linear(BN(ReLU(Linear(BN(ReLU(v)))))), fed with rows of a label embedding
in R^{C x E}.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from simlap.data.batch import Pairs
from simlap.nn.gate import FeatureFilter, GateOutput, per_pair
from simlap.nn.weighted_norm import weighted_batch_norm


class LearntFilter(FeatureFilter):
    """Label embedding and m(v), shared by the kinds below."""

    def __init__(self, num_classes: int, embed_dim: int, embedding_dim: int = 512, hidden_dim: int = 1024) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.embedding = nn.Embedding(num_classes, embedding_dim)
        self.mlp = nn.Sequential(
            nn.ReLU(),
            nn.BatchNorm1d(embedding_dim),
            nn.Linear(embedding_dim, hidden_dim),
            nn.ReLU(),
            nn.BatchNorm1d(hidden_dim),
            nn.Linear(hidden_dim, embed_dim),
        )

    def _m(self, v: Tensor, counts: Tensor | None = None, size: int = 0) -> Tensor:
        """v [n, E] -> [n, D], float32 even under autocast: a half-precision sigmoid would lose small gates.

        Args:
            counts: [n], how many rows each stands for, where rows are distinct ones.
            size: their sum.
        """
        logits = v
        for layer in self.mlp:
            if counts is not None and isinstance(layer, _BatchNorm):
                logits = weighted_batch_norm(layer, logits, counts, size)
            else:
                logits = layer(logits)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _pair_logits(self, labels: Tensor, pair_labels: Tensor, pairs: Pairs | None) -> Tensor:
        """m((E[y] + E[p]) / 2), [b, D]; [U, D] with pairs."""
        counts, size = None, 0
        if pairs is not None:
            labels, pair_labels, counts, size = pairs.labels, pairs.pair_labels, pairs.counts, len(pairs.index)
        return self._m((self.embedding(labels) + self.embedding(pair_labels)) / 2, counts, size)

    def _noisy_logits(
        self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None, pairs: Pairs | None, scale: float = 1.0
    ) -> tuple[Tensor, Tensor, Pairs | None]:
        """m + scale x noise, m (by pair), and the pairs where the former is by pair too: noise is every row's own."""
        m = self._pair_logits(labels, pair_labels, pairs)
        if not self.training:
            return m, m, pairs
        of_rows = m if pairs is None else F.embedding(pairs.index, m)
        return of_rows + scale * self._checked(noise, of_rows), m, None

    def _checked(self, noise: Tensor | None, like: Tensor) -> Tensor:
        if noise is None or noise.shape != like.shape:
            got = None if noise is None else [*noise.shape]
            raise ValueError(
                f"in training mode this filter needs noise of shape {[*like.shape]} (see draw_noise), not {got}"
            )
        return noise.to(like)


class SigmoidFilter(LearntFilter):
    """The paper's: g = sigmoid(m((E[y] + E[p]) / 2))."""

    def forward(
        self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None, pairs: Pairs | None = None
    ) -> GateOutput:
        """See `FeatureFilter`."""
        gates = self._pair_logits(labels, pair_labels, pairs).sigmoid()
        return per_pair(gates, gates.new_zeros(()), pairs)


class ProductFilter(LearntFilter):
    """g = sigmoid(m(E[y])) * sigmoid(m(E[p])), with one call of m on the 2b stacked rows, for its batch norms."""

    def forward(
        self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None, pairs: Pairs | None = None
    ) -> GateOutput:
        """See `FeatureFilter`."""
        if pairs is None:
            own, pair = self._m(self.embedding(torch.cat([labels, pair_labels]))).sigmoid().chunk(2)  # [b, D] each
        else:
            own, pair = self._of_pairs(pairs)  # [U, D] each
        gates = own * pair
        return per_pair(gates, gates.new_zeros(()), pairs)

    def _of_pairs(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """sigmoid(m(E[y])) and sigmoid(m(E[p])), m once for every class, or on the stacked pairs where these are fewer."""
        stacked, counts = torch.cat([pairs.labels, pairs.pair_labels]), pairs.counts.repeat(2)
        rows = self.embedding.weight
        if len(rows) > len(stacked):
            rows = self.embedding(stacked)
            own, pair = self._m(rows, counts, 2 * len(pairs.index)).sigmoid().chunk(2)
            return own, pair
        # a class that the batch does not have counts 0 times
        of_classes = counts.new_zeros(len(rows)).index_add_(0, stacked, counts)
        own, pair = F.embedding(stacked, self._m(rows, of_classes, 2 * len(pairs.index)).sigmoid()).chunk(2)
        return own, pair


class GumbelFilter(LearntFilter):
    """g = sigmoid((m + noise) / temperature).

    Args:
        noise: `logistic` (the difference of two Gumbel variables: the relaxed Bernoulli of Maddison et al. 2017 and
            Jang et al. 2017) or `gumbel` (a single Gumbel variable, the authors' form).
        temperature: of the relaxation.
        hard: g = 1[soft gate > 1/2] with the soft gate's gradient (straight-through), at evaluation too.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dim: int,
        embedding_dim: int = 512,
        hidden_dim: int = 1024,
        *,
        noise: Literal["logistic", "gumbel"] = "logistic",
        temperature: float = 1.0,
        hard: bool = False,
    ) -> None:
        super().__init__(num_classes, embed_dim, embedding_dim, hidden_dim)
        self.noise, self.temperature, self.hard = noise, temperature, hard

    def forward(
        self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None, pairs: Pairs | None = None
    ) -> GateOutput:
        """See `FeatureFilter`."""
        logits, _, shared = self._noisy_logits(labels, pair_labels, noise, pairs)
        gates = (logits / self.temperature).sigmoid()
        if self.hard:
            binary = (gates > 0.5).to(gates)
            gates = binary + (gates - gates.detach())  # in this order the value is exactly 0 or 1
        return per_pair(gates, gates.new_zeros(()), shared)

    def draw_noise(self, num_rows: int, generator: torch.Generator) -> Tensor | None:
        """See `FeatureFilter`."""
        shape = (num_rows, self.embed_dim)
        u = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
        u.clamp_(min=2.0**-54)  # rand may give 0, never 1
        sample = u.logit() if self.noise == "logistic" else -(-u.log()).log()
        return sample.float()


class StochasticFilter(LearntFilter):
    """Stochastic gates (Yamada et al. 2020): g = clamp(mu + sigma * eps + 1/2, 0, 1), mu = m(...), eps ~ N(0, 1).

    The regulariser is the expected number of gates above 0, `regulariser` times the sum of Phi((mu + 1/2) / sigma).

    Args:
        sigma: standard deviation of the noise.
        regulariser: weight of the regulariser.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dim: int,
        embedding_dim: int = 512,
        hidden_dim: int = 1024,
        *,
        sigma: float = 0.5,
        regulariser: float = 1e-6,
    ) -> None:
        super().__init__(num_classes, embed_dim, embedding_dim, hidden_dim)
        self.sigma, self.regulariser = sigma, regulariser

    def forward(
        self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None, pairs: Pairs | None = None
    ) -> GateOutput:
        """See `FeatureFilter`."""
        noisy, mu, shared = self._noisy_logits(labels, pair_labels, noise, pairs, self.sigma)
        expected_open = torch.special.ndtr((mu + 0.5) / self.sigma).sum(dim=1)  # by row, or by pair
        if pairs is not None:
            expected_open = expected_open * pairs.counts
        return per_pair((noisy + 0.5).clamp(0.0, 1.0), self.regulariser * expected_open.sum(), shared)

    def draw_noise(self, num_rows: int, generator: torch.Generator) -> Tensor | None:
        """See `FeatureFilter`."""
        return torch.randn(num_rows, self.embed_dim, generator=generator, device=generator.device)
