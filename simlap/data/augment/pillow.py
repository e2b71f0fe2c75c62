"""Pillow's 8-bit point and blend operations in batches, equal to the last bit.

Each takes uint8 [n, c, s, s] with one or three channels and `arguments`, float32 [n, k] on the same device, of which it uses
the first (or none), and returns uint8 [n, c, s, s].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def invert(images: Tensor, arguments: Tensor) -> Tensor:
    return images.bitwise_not()


def posterize(images: Tensor, arguments: Tensor) -> Tensor:
    """Keep the highest bits. The argument is the mask: 256 - 2^(8 - bits)."""
    return images & _first(arguments).to(torch.uint8)


def solarize(images: Tensor, arguments: Tensor) -> Tensor:
    """Invert from the threshold on."""
    return torch.where(images < _first(arguments), images, images.bitwise_not())


def solarize_add(images: Tensor, arguments: Tensor) -> Tensor:
    """Add to what is below 128."""
    added = (images.to(torch.int16) + _first(arguments).to(torch.int16)).clamp_(max=255).to(torch.uint8)
    return torch.where(images < 128, added, images)


def auto_contrast(images: Tensor, arguments: Tensor) -> Tensor:
    """Stretch each channel to 0..255."""
    # double precision, as Pillow: its table truncates, so that the last bit of a product decides on a grey level
    low = images.amin((2, 3)).to(torch.float64)[..., None]  # [n, c, 1]
    high = images.amax((2, 3)).to(torch.float64)[..., None]
    levels = torch.arange(256, device=images.device, dtype=torch.float64)
    # torch divides a number by a tensor through the reciprocal, which rounds twice
    scale = torch.full_like(high, 255) / (high - low).clamp(min=1)
    table = (levels * scale + -low * scale).clamp(0, 255).floor()
    return _look_up(images, torch.where(high > low, table, levels).to(torch.uint8))


def equalize(images: Tensor, arguments: Tensor) -> Tensor:
    """Equalise the histogram of each channel."""
    flat = images.flatten(2).to(torch.int64)  # [n, c, s*s]
    histogram = torch.zeros((*flat.shape[:2], 256), dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, flat, torch.ones_like(flat))
    brightest = histogram.gather(2, flat.amax(2, keepdim=True))  # [n, c, 1], how many pixels have the highest value
    step = (flat.shape[2] - brightest) // 255
    below = histogram.cumsum(2) - histogram
    table = ((step // 2 + below) // step.clamp(min=1)).clamp_(max=255)
    levels = torch.arange(256, device=images.device)
    return _look_up(images, torch.where(step > 0, table, levels).to(torch.uint8))


def brightness(images: Tensor, arguments: Tensor) -> Tensor:
    """Blend with black. The argument of the blends is the share of the image."""
    return _blend(torch.zeros((), device=images.device), images, arguments)


def contrast(images: Tensor, arguments: Tensor) -> Tensor:
    """Blend with the mean luma, rounded."""
    luma = _luma(images)
    count = luma[0].numel()
    mean = (2 * luma.sum((1, 2, 3), keepdim=True) + count) // (2 * count)  # [n, 1, 1, 1]
    return _blend(mean.to(torch.float32), images, arguments)


def color(images: Tensor, arguments: Tensor) -> Tensor:
    """Blend with the grey image."""
    return _blend(_luma(images).to(torch.float32), images, arguments)


def sharpness(images: Tensor, arguments: Tensor) -> Tensor:
    """Blend with the smoothed image (3 x 3, the centre weighs 5 of 13; the border stays)."""
    if min(images.shape[2:]) < 3:
        return images
    smooth = images.to(torch.float32)
    inner = smooth[..., 1:-1, 1:-1]
    total = F.avg_pool2d(smooth, 3, stride=1, divisor_override=1) + 4 * inner
    smooth = smooth.clone()
    smooth[..., 1:-1, 1:-1] = (total / 13 + 0.5).floor_()
    return _blend(smooth, images, arguments)


def _blend(degenerate: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """`Image.blend`, which truncates. degenerate: float32, whole numbers, broadcastable to the images."""
    difference = images - degenerate
    # product and sum apart: fused, they would round once less than Pillow's
    product = difference * _first(factors)
    return product.add_(degenerate).clamp_(0, 255).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """`convert("L")`. Returns int32 [n, 1, s, s]."""
    if images.shape[1] != 3:
        return images.to(torch.int32)
    red, green, blue = images.to(torch.int32).split(1, dim=1)
    scaled: Tensor = red * 19595 + green * 38470 + blue * 7471 + 0x8000
    return scaled >> 16


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """tables: uint8 [n, c, 256]."""
    return tables.gather(2, images.flatten(2).to(torch.int64)).view_as(images)


def _first(arguments: Tensor) -> Tensor:
    return arguments[:, :1, None, None]
