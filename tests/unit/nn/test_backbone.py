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
        ("vit_small_patch16_224", {"depth": 1, "patch_size": 4}, 3, 28, 384),
        ("vit_small_patch16_224", {"depth": 1}, 3, 48, 384),
        ("deit3_small_patch16_224", {"depth": 1, "patch_size": 8}, 3, 64, 384),
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


def test_patch_size_is_the_vits_way_to_small_images() -> None:
    kwargs: dict[str, Any] = {"depth": 1, "patch_size": 4}
    backbone: Any = build_backbone(Backbone(name="vit_tiny_patch16_224", kwargs=kwargs), 3, 32)
    assert backbone.patch_embed.grid_size == (8, 8)
    assert backbone.pos_embed.shape[1] == 1 + 8 * 8  # class token and patches


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("resnet18", {}), ("resnet18d", {}), ("resnet10t", {}), ("seresnet50", {"layers": [1, 1, 1, 1]})],
)
def test_small_stem(name: str, kwargs: dict[str, Any]) -> None:
    """One 3x3 convolution, the image's full size in the first stage, the same network behind it."""
    small: Any = build_backbone(Backbone(name=name, stem="small", kwargs=kwargs), 1, 32).eval()
    plain: Any = build_backbone(Backbone(name=name, kwargs=kwargs), 1, 32).eval()
    sizes: list[tuple[int, ...]] = []
    small.layer1.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    assert small(torch.randn(2, 1, 32, 32)).shape == (2, plain.num_features)
    assert sizes == [(32, 32)]
    assert tuple(small.conv1.weight.shape) == (plain.bn1.num_features, 1, 3, 3)
    behind, plain_behind = (
        {key: value.shape for key, value in model.state_dict().items() if not key.startswith(("conv1", "maxpool"))}
        for model in (small, plain)
    )
    assert behind == plain_behind


def test_small_stem_is_initialised_like_other_convolutions_of_timm() -> None:
    """He et al. 2015, fan out."""
    model: Any = build_backbone(Backbone(name="resnet18", stem="small"), 3, 32)
    weight = model.conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet18", {"drop_path_rate": 0.5, "zero_init_last": False}),
        ("vit_tiny_patch16_224", {"drop_path_rate": 0.5, "depth": 2}),
    ],
)
def test_drop_path(name: str, kwargs: dict[str, Any]) -> None:
    """Drawn anew in training mode, off at evaluation."""
    backbone = build_backbone(Backbone(name=name, kwargs=kwargs), 3, 32)
    images = torch.randn(1, 3, 32, 32).repeat(16, 1, 1, 1)
    modules: list[Any] = list(backbone.modules())
    assert max(module.drop_prob for module in modules if type(module).__name__ == "DropPath") == 0.5
    assert len(backbone.eval()(images).round(decimals=3).unique(dim=0)) == 1
    assert len(backbone.train()(images).round(decimals=3).unique(dim=0)) > 1


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


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("conv3", {}, r"backbone.stem: conv3 is made for small images as it is.*'small'"),
        ("vit_tiny_patch16_224", {"depth": 1}, r"backbone.stem: vit_tiny.*none of timm's ResNets.*patch_size"),
        ("mobilenetv3_small_050", {}, r"backbone.stem: mobilenetv3_small_050 is none of timm's ResNets"),
        ("resnet18", {"stem_type": "deep"}, r"backbone.kwargs.stem_type: stem: small takes this part away.*'deep'"),
        ("resnet18", {"replace_stem_pool": True}, r"backbone.kwargs.replace_stem_pool: .*True"),
    ],
)
def test_small_stem_errors(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(Backbone(name=name, kwargs=kwargs, stem="small"), 3, 32)
