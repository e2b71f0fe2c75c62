"""Pillow's 8-bit point operations as tables of 256 grey levels, equal to the last bit: made apart, applied together.

Where a table depends on the arguments alone it is made on the CPU by numpy; where it depends on the image too, on the
device. Those of the device give uint8 [n, c, 256].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arguments = NDArray[np.float64]
Tables = NDArray[np.uint8]
_LEVELS = np.arange(256)


def look_up(pixels: Tensor, tables: Tensor) -> Tensor:
    """pixels: int64 [n, c, p]; tables: uint8 [n, c, 256]. Returns uint8 [n, c, p]."""
    return tables.gather(2, pixels)


def _invert(arguments: Arguments) -> NDArray[np.int64]:
    return np.broadcast_to(255 - _LEVELS, (len(arguments), 256))


def _posterize(bits: Arguments) -> NDArray[np.int64]:
    """Keep the highest bits."""
    masks = 256 - 2 ** (8 - np.minimum(bits, 8)).astype(np.int64)
    result: NDArray[np.int64] = _LEVELS & masks[:, None]
    return result


def _solarize(thresholds: Arguments) -> NDArray[np.int64]:
    """Invert from the threshold on."""
    return np.where(thresholds[:, None] > _LEVELS, _LEVELS, 255 - _LEVELS)


def _solarize_add(added: Arguments) -> NDArray[np.int64]:
    """Add to what is below 128."""
    return np.where(_LEVELS < 128, np.minimum(255, _LEVELS + added[:, None].astype(np.int64)), _LEVELS)


def _brightness(factors: Arguments) -> NDArray[np.float32]:
    """Blend with black, as `Image.blend` in single precision."""
    result: NDArray[np.float32] = np.minimum(255, _LEVELS.astype(np.float32) * factors[:, None].astype(np.float32))
    return result


FIXED: dict[str, Callable[[Arguments], NDArray[Any]]] = {
    "Invert": _invert,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Brightness": _brightness,
}
"""Tables [n, 256] from the n arguments of timm's operation; a fraction is cut off."""


def auto_contrast(pixels: Tensor) -> Tensor:
    """Stretch each channel to 0..255. pixels: uint8 [n, c, p]."""
    # double precision, as Pillow: its table truncates, so that the last bit of a product decides on a grey level
    low, high = (
        pixels.amin(2, keepdim=True).to(torch.float64),
        pixels.amax(2, keepdim=True).to(torch.float64),
    )  # [n, c, 1]
    levels = torch.arange(256, device=pixels.device, dtype=torch.float64)
    # torch divides a number by a tensor through the reciprocal, which rounds twice
    scale = torch.full_like(high, 255) / (high - low).clamp_(min=1)
    table = (levels * scale).add_(-low * scale).clamp_(0, 255)
    return torch.where(high > low, table, levels).to(torch.uint8)


def equalize(pixels: Tensor) -> Tensor:
    """Equalise the histogram of each channel. pixels: int64 [n, c, p]."""
    histogram = torch.zeros((*pixels.shape[:2], 256), dtype=torch.int64, device=pixels.device)
    histogram.scatter_add_(2, pixels, torch.ones((), dtype=torch.int64, device=pixels.device).expand(pixels.shape))
    brightest = histogram.gather(2, pixels.amax(2, keepdim=True))  # [n, c, 1], how many pixels have the highest value
    step = (pixels.shape[2] - brightest) // 255
    below = histogram.cumsum(2).sub_(histogram)
    table = below.add_(step // 2).floor_divide_(step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, table, torch.arange(256, device=pixels.device)).to(torch.uint8)


def contrast(luma: Tensor, channels: int, factors: Tensor) -> Tensor:
    """Blend with the mean luma, rounded. luma: int32 [n, 1, h, w]; factors: float32 [n]."""
    count = luma[0].numel()
    mean = (2 * luma.sum((1, 2, 3)) + count) // (2 * count)  # [n]
    levels = torch.arange(256, device=luma.device, dtype=torch.float32)
    return blend(mean.to(torch.float32)[:, None], levels, factors[:, None])[:, None].expand(-1, channels, -1)


def blend(degenerate: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """`Image.blend`, which truncates. All three broadcast; degenerate: float32, whole numbers. Returns uint8."""
    difference = images - degenerate
    # product and sum apart: fused, they would round once less than Pillow's
    return difference.mul_(factors).add_(degenerate).clamp_(0, 255).to(torch.uint8)
