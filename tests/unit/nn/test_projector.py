"""The projector."""

from __future__ import annotations

import torch
from torch import nn

from simlap.nn import Projector, build_projector


def test_layers_and_shape() -> None:
    projector = Projector(6, 4, hidden_dim=8)
    assert [type(layer) for layer in projector] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.LayerNorm]
    assert [name for name, _ in projector.named_parameters() if name.startswith("3")] == ["3.weight"]  # no bias
    z = projector(torch.randn(5, 6))
    assert z.shape == (5, 4)
    torch.testing.assert_close(z.mean(dim=1), torch.zeros(5), atol=1e-6, rtol=0)  # LayerNorm comes last


def test_default_width() -> None:
    assert Projector(6, 4)[0].out_features == 2048


def test_kinds() -> None:
    mlp = build_projector("mlp", 6, 4, 8)
    assert isinstance(mlp, Projector)
    assert mlp[0].out_features == 8
    linear = build_projector("linear", 6, 4, 8)
    assert isinstance(linear, nn.Linear)
    assert (linear.in_features, linear.out_features) == (6, 4)
