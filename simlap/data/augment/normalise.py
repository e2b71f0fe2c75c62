"""From grey levels to the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simlap.data.augment.device import constant


def to_input(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images / 255 - mean) / std, per channel. images: [b, c, h, w] in 0..255, uint8 or float. Returns float32."""
    scale = [1 / (255 * s) for s in std]
    offset = [-m / s for m, s in zip(mean, std, strict=True)]
    if len(scale) == 1:
        return images.to(torch.float32).mul(scale[0]).add_(offset[0])
    constants = constant([*scale, *offset], images.device).view(2, -1, 1, 1)  # [2, c, 1, 1]
    x = images.to(torch.float32, copy=True)
    return torch.addcmul(constants[1], x, constants[0], out=x)
