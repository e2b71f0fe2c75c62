"""Backbones: any timm model, or a small network for small images. All give [b, d] features; `num_features` is d."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from simlap.config.schema import Backbone
from simlap.errors import ConfigError

# what the experiment itself decides, or what would bring in weights from elsewhere
_RESERVED = ("in_chans", "num_classes", "pretrained", "pretrained_cfg", "checkpoint_path", "features_only")


class Conv3(nn.Sequential):
    """Convolution, BN and ReLU, once per width, halving the image from the second on, and global average pooling.

    With the default widths about 93,000 parameters: made for 8x8 images.

    Args:
        channels: of the images.
        widths: channels after each convolution.
    """

    def __init__(self, channels: int, widths: Sequence[int] = (32, 64, 128)) -> None:
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise((channels, *widths))):
            layers += [
                nn.Conv2d(before, after, 3, stride=1 if i == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.num_features = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """images [b, c, s, s] -> h [b, d]."""
        h: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return h


def build_backbone(config: Backbone, channels: int, image_size: int) -> nn.Module:
    """The backbone a config asks for, without classifier and without weights from elsewhere (the caller seeds).

    Args:
        config: the experiment's `backbone`; its `weights` and `frozen_norm` are for others.
        channels: of the images.
        image_size: side of the square images; handed to models that are built for one size (ViT, Swin).

    Returns:
        A module that maps [b, channels, image_size, image_size] to [b, d], with `num_features` = d.

    Raises:
        ConfigError: unknown name, keyword arguments the model does not take, or a small stem for a model without one.
    """
    if config.name == "conv3":
        if config.stem == "small":
            raise ConfigError("conv3 is made for small images as it is, remove it", key="backbone.stem", value="small")
        return _build_conv3(config.kwargs, channels)
    import timm  # takes seconds
    from timm.models import get_pretrained_cfg

    if not timm.is_model(config.name):
        near = difflib.get_close_matches(config.name, ["conv3", *timm.list_models()], n=5, cutoff=0.5)
        raise ConfigError(
            "unknown backbone; every name in timm.list_models() and conv3 are valid",
            key="backbone.name",
            value=config.name,
            choices=near,
        )
    for name, value in config.kwargs.items():
        if name in _RESERVED:
            raise ConfigError("set by the experiment itself, remove it", key=f"backbone.kwargs.{name}", value=value)
        if name == "global_pool" and not value:
            raise ConfigError("features must be pooled", key="backbone.kwargs.global_pool", value=value)
    kwargs: dict[str, Any] = dict(config.kwargs)
    pretrained_cfg = get_pretrained_cfg(config.name)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        kwargs.setdefault("img_size", image_size)
    try:
        model: nn.Module = timm.create_model(config.name, pretrained=False, num_classes=0, in_chans=channels, **kwargs)
    except Exception as error:  # timm models answer wrong arguments with errors of every type
        raise ConfigError(
            f"{config.name} cannot be built for {image_size}x{image_size} images: {type(error).__name__}: {error}",
            key="backbone.kwargs",
            value=dict(config.kwargs) or None,
        ) from error
    if config.stem == "small":
        _make_stem_small(model, config, channels)
    # some models end in a hidden layer of their head, which is wider or narrower than what timm calls num_features
    width = getattr(model, "head_hidden_size", None) or model.num_features
    model.num_features = int(width)  # type: ignore[arg-type, assignment]
    return model


def _make_stem_small(model: nn.Module, config: Backbone, channels: int) -> None:
    """A ResNet begins with one 3x3 convolution of stride 1 and no pooling, instead of what divides the side by 4."""
    from timm.models.resnet import ResNet

    if not isinstance(model, ResNet):
        raise ConfigError(
            f"{config.name} is none of timm's ResNets, which this is for; fit another model to small images by its own "
            "arguments, such as backbone.kwargs.patch_size for a vision transformer",
            key="backbone.stem",
            value="small",
        )
    for name in ("stem_type", "stem_width", "replace_stem_pool"):
        if name in config.kwargs:
            raise ConfigError(
                "stem: small takes this part away, remove one of them",
                key=f"backbone.kwargs.{name}",
                value=config.kwargs[name],
            )
    stem = nn.Conv2d(channels, int(model.bn1.num_features), 3, padding=1, bias=False)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as timm does its convolutions
    model.conv1 = stem  # type: ignore[assignment]
    model.maxpool = nn.Identity()  # type: ignore[assignment]


def _build_conv3(kwargs: Mapping[str, Any], channels: int) -> Conv3:
    for name, value in kwargs.items():
        if name != "widths":
            raise ConfigError(
                "unknown argument of conv3", key=f"backbone.kwargs.{name}", value=value, choices=["widths"]
            )
    widths = kwargs.get("widths", [32, 64, 128])
    valid = isinstance(widths, list | tuple) and widths and all(type(width) is int and width > 0 for width in widths)
    if not valid:
        raise ConfigError("must be a list of positive whole numbers", key="backbone.kwargs.widths", value=widths)
    return Conv3(channels, widths)
