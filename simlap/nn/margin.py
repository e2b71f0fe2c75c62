"""The head of fuse: normalised features, and an ArcGrad classifier on them (Wu & Wang, IJCNN 2020).

Shapes: b rows, d backbone width, D width of the normalised features, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MARGIN = 1e-7  # the slope of arccos at +-1 is infinite


class ArcGradOutput(NamedTuple):
    """What the head gives for b rows, float32 or wider."""

    z: Tensor
    """[b, D], rows of length 1."""
    training_logits: Tensor
    """[b, C], (pi - angle) / temperature."""
    evaluation_logits: Tensor
    """[b, C], the cosine of the angle between z and each class's weight row."""


class ArcGradHead(nn.Module):
    """Linear(d -> hidden, no bias), ReLU, BN, Linear(hidden -> D, no bias), BN without affine part, z of length 1.

    Then a linear classifier without bias whose rows count by their direction only (weight normalisation with magnitudes
    frozen at 1). There is no explicit margin: the angle as a logit has a gradient of constant size, where the cosine's
    fades as the angle closes.

    Args:
        in_features: d, the backbone's width.
        num_classes: C.
        hidden_dim: width of the hidden layer.
        embed_dim: D.
        temperature: 1/s; the training logits are s (pi - arccos cos).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden_dim: int = 2048,
        embed_dim: int = 512,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(in_features, hidden_dim, bias=False),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(hidden_dim),
            nn.Linear(hidden_dim, embed_dim, bias=False),
            nn.BatchNorm1d(embed_dim, affine=False),
        )
        self.classifier = nn.Linear(embed_dim, num_classes, bias=False)
        self.temperature = temperature

    def forward(self, h: Tensor) -> ArcGradOutput:
        """h [b, d]. What follows the projector is in float32 at least: bfloat16 knows no number between 0.996 and 1."""
        features = self.projector(h)
        with torch.autocast(h.device.type, enabled=False):
            weight = self.classifier.weight
            dtype = torch.promote_types(torch.promote_types(features.dtype, weight.dtype), torch.float32)
            z = F.normalize(features.to(dtype), dim=1)  # [b, D]
            cosines = F.linear(z, F.normalize(weight.to(dtype), dim=1))  # [b, C]
            cosines = cosines.clamp(-1.0 + _MARGIN, 1.0 - _MARGIN)
            return ArcGradOutput(z, (math.pi - cosines.arccos()) / self.temperature, cosines)

    def sign_weights(self) -> Tensor:
        """The classifier's weight rows for `sign` gates: [C, D], without gradient."""
        return self.classifier.weight.detach()
