"""The projector: backbone features to the space the loss lives in (docs/method.md, "Projector")."""

from __future__ import annotations

from typing import Literal, assert_never

from torch import Tensor, nn


class Projector(nn.Sequential):
    """Linear(d -> hidden), BN, ReLU, Linear(hidden -> D, no bias), LayerNorm.

    Args:
        in_features: d, the backbone's width.
        embed_dim: D.
        hidden_dim: width of the hidden layer.
    """

    def __init__(self, in_features: int, embed_dim: int, hidden_dim: int = 2048) -> None:
        super().__init__(
            nn.Linear(in_features, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, embed_dim, bias=False),
            nn.LayerNorm(embed_dim),
        )
        self.in_features, self.embed_dim = in_features, embed_dim

    def forward(self, h: Tensor) -> Tensor:
        """h [b, d] -> z [b, D]."""
        z: Tensor = super().forward(h)  # type: ignore[no-untyped-call]
        return z


def build_projector(
    kind: Literal["mlp", "linear"], in_features: int, embed_dim: int, hidden_dim: int = 2048
) -> nn.Module:
    """The projector of this kind, [b, d] -> [b, D], with torch's default initialisation (the caller seeds).

    Args:
        kind: `mlp`, the `Projector`, or `linear`, a single layer.
        in_features: d, the backbone's width.
        embed_dim: D.
        hidden_dim: width of the hidden layer of `mlp`.
    """
    match kind:
        case "mlp":
            return Projector(in_features, embed_dim, hidden_dim)
        case "linear":
            return nn.Linear(in_features, embed_dim)
        case _:
            assert_never(kind)
