"""Small pictures for pages, as PNG files in base64."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

MAX_SIDE = 64
"""Larger images are made smaller."""
_STOPS = ((0.0, (0, 0, 4)), (0.25, (87, 16, 110)), (0.5, (188, 55, 84)), (0.75, (249, 142, 9)), (1.0, (252, 255, 164)))
"""Of the colour map `inferno` of matplotlib."""
_LEAST_ALPHA, _ALPHA = 0.35, 0.4


def picture(image: Tensor) -> str:
    """uint8 [c, h, w], c 1 or 3, at most so large."""
    side = max(image.shape[1:])
    if side > MAX_SIDE:
        scale = MAX_SIDE / side
        smaller = F.interpolate(image[None].float(), scale_factor=scale, mode="bilinear", antialias=True)[0]
        image = smaller.round().clamp(0, 255).to(torch.uint8)
    return _png(image.cpu().numpy().transpose(1, 2, 0))


def overlay(map_: Tensor, size: tuple[int, int]) -> str:
    """A map [h, w] of values that are not negative, as half-transparent colours to lay over an image of this size: dark where
    it is 0, bright at its largest."""
    size = (min(size[0], MAX_SIDE), min(size[1], MAX_SIDE))
    values = F.interpolate(map_[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
    values = values / max(float(values.max()), 1e-12)
    places = [place for place, _ in _STOPS]
    channels = [np.interp(values, places, [colour[i] for _, colour in _STOPS]) for i in range(3)]
    alpha = 255 * (_LEAST_ALPHA + _ALPHA * values)
    return _png(np.stack([*channels, alpha], axis=2).round().astype(np.uint8))


def _png(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
