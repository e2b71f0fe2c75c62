"""From grey levels to the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simlap.data.augment.device import constant

# a CPU is faster with parts of a batch that its caches hold
_ROWS = 64


def to_input(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images / 255 - mean) / std, per channel. images: [b, c, h, w] in 0..255, uint8 or float. Returns float32."""
    scale = [1 / (255 * s) for s in std]
    offset = [-m / s for m, s in zip(mean, std, strict=True)]
    scales, offsets = constant([*scale, *offset], images.device).view(2, -1, 1, 1)  # [c, 1, 1] each
    if images.device.type != "cpu":
        return torch.addcmul(offsets, images, scales) if images.is_floating_point() else (images * scales).add_(offsets)
    x = torch.empty(images.shape, dtype=torch.float32)
    for part, source in zip(x.split(_ROWS), images.split(_ROWS), strict=True):
        part.copy_(source).mul_(scales).add_(offsets)
    return x
