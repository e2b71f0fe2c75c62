"""The feature filter: which kinds of gates there are, and how a config asks for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import torch
from torch import Tensor

from simlap.config.schema import (
    Gate,
    GatePlugin,
    GumbelGate,
    OpenGate,
    ProductGate,
    SigmoidGate,
    SignGate,
    StochasticGate,
)
from simlap.config.schema.plugins import implementation_of
from simlap.data.batch import Pairs
from simlap.nn.gate import FeatureFilter, GateOutput, gate_penalty, open_gates, per_pair
from simlap.nn.learnt_filter import GumbelFilter, ProductFilter, SigmoidFilter, StochasticFilter

__all__ = ["FeatureFilter", "GateOutput", "OpenFilter", "SignFilter", "build_filter", "gate_penalty"]


class OpenFilter(FeatureFilter):
    """The filter switched off: g = 1, one row for all pairs. No parameters."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim

    def forward(
        self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None, pairs: Pairs | None = None
    ) -> GateOutput:
        """See `FeatureFilter`."""
        return open_gates(len(labels), self.embed_dim, labels.device)


class SignFilter(FeatureFilter):
    """Of the classifier's weight rows: g = 1[w_y * w_p > 0], without gradient. No parameters of its own.

    Args:
        weights: gives the rows, [C, D], when asked; a method of the classifier, so that a deep copy of a model that
            holds both asks its own classifier.
    """

    def __init__(self, weights: Callable[[], Tensor]) -> None:
        super().__init__()
        self._weights = weights

    def forward(
        self, labels: Tensor, pair_labels: Tensor, noise: Tensor | None = None, pairs: Pairs | None = None
    ) -> GateOutput:
        """See `FeatureFilter`."""
        if pairs is not None:
            labels, pair_labels = pairs.labels, pairs.pair_labels
        signs = self._weights().detach().sign()  # [C, D]; products of the weights themselves could underflow
        gates = (signs[labels] * signs[pair_labels] > 0).to(torch.promote_types(signs.dtype, torch.float32))
        return per_pair(gates, gates.new_zeros(()), pairs)


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
        ConfigError: a plug-in's gate that cannot be imported, or is no filter.
    """
    if isinstance(gate, GatePlugin):
        made: FeatureFilter = implementation_of(gate, FeatureFilter)(gate, num_classes=num_classes, embed_dim=embed_dim)
        return made
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
