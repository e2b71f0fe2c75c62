"""Backbones: shapes, reproducible initialisation, and errors that help."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from simlap.config.schema import Backbone
from simlap.errors import ConfigError
from simlap.nn import build_backbone


@pytest.mark.parametrize(
    ("name", "kwargs", "channels", "size", "width"),
    [
        ("conv3", {}, 1, 8, 128),
        ("conv3", {"widths": [4, 6]}, 3, 5, 6),
        ("resnet18", {"stem_type": "deep", "output_stride": 8}, 3, 32, 512),
        ("vit_tiny_patch16_224", {"depth": 1, "patch_size": 8}, 1, 32, 192),  # built for another size
        ("mobilenetv3_small_050", {}, 3, 32, 1024),  # gives its head's width, not what timm calls num_features
    ],
)
def test_features(name: str, kwargs: dict[str, Any], channels: int, size: int, width: int) -> None:
    backbone = build_backbone(Backbone(name=name, kwargs=kwargs), channels, size).eval()
    assert backbone.num_features == width
    assert backbone(torch.randn(2, channels, size, size)).shape == (2, width)


def test_conv3_halves_twice() -> None:
    backbone = build_backbone(Backbone(name="conv3"), 1, 8)
    x, sizes = torch.randn(2, 1, 8, 8), []
    for layer in backbone.children():
        x = layer(x)
        if isinstance(layer, torch.nn.Conv2d):
            sizes.append(tuple(x.shape[1:]))
    assert sizes == [(32, 8, 8), (64, 4, 4), (128, 2, 2)]


def test_initialisation_follows_the_callers_seed() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_backbone(Backbone(name="conv3"), 1, 8).state_dict()["0.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnet19", {}, r"backbone.name: unknown backbone.*'resnet19'.*did you mean 'resnet1[048]"),
        ("conv4", {}, r"did you mean 'conv3'"),
        (
            "resnet18",
            {"stem": "deep"},
            r"backbone.kwargs: resnet18 cannot be built.*unexpected keyword argument 'stem'",
        ),
        ("resnet18", {"num_classes": 10}, r"backbone.kwargs.num_classes: set by the experiment itself"),
        ("resnet18", {"pretrained": True}, r"backbone.kwargs.pretrained"),
        ("resnet18", {"global_pool": ""}, r"features must be pooled"),
        ("conv3", {"width": [1]}, r"backbone.kwargs.width: unknown argument of conv3.*did you mean 'widths'"),
        ("conv3", {"widths": []}, r"backbone.kwargs.widths: must be a list of positive whole numbers"),
        ("conv3", {"widths": [True]}, r"must be a list of positive whole numbers"),
        ("conv3", {"widths": 3}, r"must be a list of positive whole numbers"),
    ],
)
def test_errors(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(Backbone(name=name, kwargs=kwargs), 3, 32)
