"""The feature filter: a gate in [0, 1]^D for each pair of classes (arXiv 2410.18200).

Shapes: b local rows, B rows of the global batch, C classes, E label embedding width, H hidden width, D embedding width.
All kinds but `open` and `sign` share m(v) = Linear(BN(ReLU(Linear(BN(ReLU(v)))))), fed with rows of a label embedding
in R^{C x E}.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple, assert_never

import torch
from torch import Tensor, nn

from simlap.config.schema import Gate, GumbelGate, OpenGate, ProductGate, SigmoidGate, SignGate, StochasticGate


class GateOutput(NamedTuple):
    """What a filter gives for b rows."""

    gates: Tensor
    """[b, D] in [0, 1], float32 or wider."""
    regulariser: Tensor
    """Scalar: weight times the *sum* over rows and D; 0 for kinds without one. Divide by the size of the global batch
    for the batch mean: a mean taken here would be wrong under data parallelism, where workers may differ in rows."""


class FeatureFilter(nn.Module, ABC):
    """Class pairs to gates."""

    @abstractmethod
    def forward(self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None) -> GateOutput:
        """Gates of the pairs (y, p).

        Args:
            labels: [b] int64, y.
            pair_labels: [b] int64, p.
            noise: [b, D], this worker's rows of `draw_noise`. Needed in training mode by the kinds with noise, ignored
                otherwise.
        """

    def draw_noise(self, num_rows: int, generator: torch.Generator) -> Tensor | None:
        """Noise for the *global* batch, to be sliced by worker: [B, D] float32 on the generator's device, or None."""
        return None


class OpenFilter(FeatureFilter):
    """The filter switched off: g = 1. No parameters."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim

    def forward(self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None) -> GateOutput:
        """See `FeatureFilter`."""
        gates = torch.ones(len(labels), self.embed_dim, device=labels.device)
        return GateOutput(gates, gates.new_zeros(()))


class SignFilter(FeatureFilter):
    """Of the classifier's weight rows: g = 1[w_y * w_p > 0], without gradient. No parameters of its own.

    Args:
        weights: gives the rows, [C, D], when asked; a method of the classifier, so that a deep copy of a model that
            holds both asks its own classifier.
    """

    def __init__(self, weights: Callable[[], Tensor]) -> None:
        super().__init__()
        self._weights = weights

    def forward(self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None) -> GateOutput:
        """See `FeatureFilter`."""
        signs = self._weights().detach().sign()  # [C, D]; products of the weights themselves could underflow
        gates = (signs[labels] * signs[pair_labels] > 0).to(torch.promote_types(signs.dtype, torch.float32))
        return GateOutput(gates, gates.new_zeros(()))


class _LearntFilter(FeatureFilter):
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

    def _m(self, v: Tensor) -> Tensor:
        """v [n, E] -> [n, D], float32 even under autocast: a half-precision sigmoid would lose small gates."""
        logits: Tensor = self.mlp(v)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _pair_logits(self, labels: Tensor, pair_labels: Tensor) -> Tensor:
        """m((E[y] + E[p]) / 2), [b, D]."""
        return self._m((self.embedding(labels) + self.embedding(pair_labels)) / 2)

    def _training_noise(self, noise: Tensor | None, like: Tensor) -> Tensor | None:
        """The noise in training mode, None in evaluation mode."""
        if not self.training:
            return None
        if noise is None or noise.shape != like.shape:
            got = None if noise is None else [*noise.shape]
            raise ValueError(
                f"in training mode this filter needs noise of shape {[*like.shape]} (see draw_noise), not {got}"
            )
        return noise.to(like)


class SigmoidFilter(_LearntFilter):
    """The paper's: g = sigmoid(m((E[y] + E[p]) / 2))."""

    def forward(self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None) -> GateOutput:
        """See `FeatureFilter`."""
        gates = self._pair_logits(labels, pair_labels).sigmoid()
        return GateOutput(gates, gates.new_zeros(()))


class ProductFilter(_LearntFilter):
    """g = sigmoid(m(E[y])) * sigmoid(m(E[p])), with one call of m on the 2b stacked rows, for its batch norms."""

    def forward(self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None) -> GateOutput:
        """See `FeatureFilter`."""
        own, pair = self._m(self.embedding(torch.cat([labels, pair_labels]))).sigmoid().chunk(2)  # [b, D] each
        gates = own * pair
        return GateOutput(gates, gates.new_zeros(()))


class GumbelFilter(_LearntFilter):
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

    def forward(self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None) -> GateOutput:
        """See `FeatureFilter`."""
        logits = self._pair_logits(labels, pair_labels)
        drawn = self._training_noise(noise, logits)
        gates = ((logits if drawn is None else logits + drawn) / self.temperature).sigmoid()
        if self.hard:
            binary = (gates > 0.5).to(gates)
            gates = binary + (gates - gates.detach())  # in this order the value is exactly 0 or 1
        return GateOutput(gates, gates.new_zeros(()))

    def draw_noise(self, num_rows: int, generator: torch.Generator) -> Tensor | None:
        """See `FeatureFilter`."""
        shape = (num_rows, self.embed_dim)
        u = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
        u.clamp_(min=2.0**-54)  # rand may give 0, never 1
        sample = u.logit() if self.noise == "logistic" else -(-u.log()).log()
        return sample.float()


class StochasticFilter(_LearntFilter):
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

    def forward(self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None) -> GateOutput:
        """See `FeatureFilter`."""
        mu = self._pair_logits(labels, pair_labels)
        drawn = self._training_noise(noise, mu)
        gates = ((mu if drawn is None else mu + self.sigma * drawn) + 0.5).clamp(0.0, 1.0)
        expected_open = torch.special.ndtr((mu + 0.5) / self.sigma).sum()
        return GateOutput(gates, self.regulariser * expected_open)

    def draw_noise(self, num_rows: int, generator: torch.Generator) -> Tensor | None:
        """See `FeatureFilter`."""
        return torch.randn(num_rows, self.embed_dim, generator=generator, device=generator.device)


def gate_penalty(gates: Tensor) -> Tensor:
    """Sum over rows of the mean over D of 4 g (1 - g), which pushes gates towards 0 and 1.

    Args:
        gates: [b, D] in [0, 1].

    Returns:
        Scalar, at most b. Divide by the size of the global batch, for the reason `GateOutput.regulariser` gives.
    """
    return (4.0 * gates * (1.0 - gates)).mean(dim=1).sum()


def build_filter(
    gate: Gate, num_classes: int, embed_dim: int, weights: Callable[[], Tensor] | None = None
) -> FeatureFilter:
    """The filter a config asks for, with torch's default initialisation (the caller seeds).

    Args:
        gate: the config's gate.
        num_classes: C.
        embed_dim: D.
        weights: gives the classifier's weight rows, [C, D]; for `sign` gates, which are made from them.

    Raises:
        ValueError: `sign` gates without a classifier.
    """
    if isinstance(gate, OpenGate):
        return OpenFilter(embed_dim)
    if isinstance(gate, SignGate):
        if weights is None:
            raise ValueError("sign gates are made from a classifier's weight rows: give `weights`")
        return SignFilter(weights)
    sizes = (num_classes, embed_dim, gate.embedding_dim, gate.hidden_dim)
    match gate:
        case SigmoidGate():
            return SigmoidFilter(*sizes)
        case ProductGate():
            return ProductFilter(*sizes)
        case GumbelGate():
            return GumbelFilter(*sizes, noise=gate.noise, temperature=gate.temperature, hard=gate.hard)
        case StochasticGate():
            return StochasticFilter(*sizes, sigma=gate.sigma, regulariser=gate.regulariser)
        case _:
            assert_never(gate)
