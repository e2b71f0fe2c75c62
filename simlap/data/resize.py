"""Images of any size to squares of one size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def fit_square(images: Tensor, size: int) -> Tensor:
    """Resize the shorter side to `size` (bilinear, antialias), then crop the centre.

    Args:
        images: uint8 [n, c, h, w].
        size: side of the result.

    Returns:
        uint8 [n, c, size, size]; `images` itself where it has that size already.
    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if min(height, width) != size:
        scale = size / min(height, width)
        target = (max(size, round(height * scale)), max(size, round(width * scale)))
        resized = F.interpolate(images.float(), target, mode="bilinear", antialias=True)
        images = resized.round().clamp(0, 255).to(torch.uint8)
        height, width = target
    top, left = (height - size) // 2, (width - size) // 2
    return images[..., top : top + size, left : left + size].contiguous()
