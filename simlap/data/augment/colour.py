"""Changes of colour, on the scale 0..255. Where torchvision has the same on one image, the results are equal.

An image with one channel has no colour: saturation, hue and grey leave it as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simlap.data.augment.device import constant

_LUMA = (0.2989, 0.587, 0.114)


def grey(x: Tensor) -> Tensor:
    """Luma of each pixel. x: float32 [b, c, s, s]. Returns [b, 1, s, s] for three channels, else x."""
    if x.shape[1] != 3:
        return x
    return (x * constant(_LUMA, x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def brightness_contrast(x: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Both in one affine map per image, clamped once (torchvision clamps in between too).

    Args:
        x: float32 [b, c, s, s] in 0..255.
        brightness: factors [b, 1, 1, 1].
        contrast: factors [b, 1, 1, 1].
    """
    level = grey(x.mean((2, 3), keepdim=True)).mean(1, keepdim=True) * brightness  # [b, 1, 1, 1]
    return (x * (brightness * contrast)).add_((1 - contrast) * level).clamp_(0, 255)


def saturation(x: Tensor, factors: Tensor) -> Tensor:
    """Blend with the grey image. x: float32 [b, c, s, s] in 0..255; factors: [b, 1, 1, 1]."""
    if x.shape[1] != 3:
        return x
    return torch.lerp(grey(x).expand_as(x), x, factors).clamp_(0, 255)


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue. x: float32 [b, c, s, s] in 0..255; turns: [b, 1, 1], share of the colour circle."""
    if x.shape[1] != 3:
        return x
    red, green, blue = x.unbind(1)  # [b, s, s]
    value = x.amax(1)
    chroma = value - x.amin(1)
    safe = chroma.clamp(min=1e-6)
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixth = sixth + 6 * turns  # hue in sixths of the circle
    # https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative
    parts = []
    for offset in (5, 3, 1):
        k = (sixth + offset).remainder(6)
        parts.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(parts, dim=1)


def solarise(x: Tensor) -> Tensor:
    """Invert all values of 128 and more. x: float32 in 0..255."""
    return torch.where(x >= 128, 255 - x, x)
