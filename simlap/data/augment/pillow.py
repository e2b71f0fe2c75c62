"""Pillow's 8-bit operations that mix channels or neighbours, in batches, equal to the last bit."""

from __future__ import annotations

import torch
from torch import Tensor


def luma(images: Tensor) -> Tensor:
    """`convert("L")`. images: uint8 [n, c, h, w] with one or three channels. Returns int32 [n, 1, h, w]."""
    if images.shape[1] != 3:
        return images.to(torch.int32)
    red, green, blue = images.to(torch.int32).split(1, dim=1)
    scaled: Tensor = red * 19595 + green * 38470 + blue * 7471 + 0x8000
    return scaled >> 16


def smoothed(images: Tensor) -> Tensor:
    """`ImageFilter.SMOOTH`: 3 x 3, the centre weighs 5 of 13; the border stays.

    Args:
        images: uint8 [n, c, h, w].

    Returns:
        float32 [n, c, h, w], whole numbers.
    """
    result = images.to(torch.float32)
    if min(images.shape[2:]) < 3:
        return result
    lines = result[..., :-2, :] + result[..., 1:-1, :] + result[..., 2:, :]  # whole numbers: exact
    total = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:]
    inner = result[..., 1:-1, 1:-1]
    inner.copy_(total.add_(inner, alpha=4).div_(13).add_(0.5).floor_())
    return result
