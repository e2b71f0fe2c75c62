"""Gaussian blur."""

from __future__ import annotations

import torch
from torch import Tensor

RADIUS = 11
"""In pixels; a kernel of 23, as timm and SimCLR have it."""


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a kernel of 23 pixels and reflected borders, as torchvision's.

    Where the image is smaller than the kernel, the kernel is cut so that one reflection suffices (torchvision raises).

    Args:
        x: float32 [b, c, s, s].
        sigma: [b] standard deviations in pixels.
    """
    size = x.shape[-1]
    pixel = torch.arange(size, device=x.device)
    to, source = pixel[:, None], pixel
    radius, sigma = min(RADIUS, size - 1), sigma[:, None, None]
    # a result takes from each pixel directly and from its mirror images beyond either border
    weight = _gauss(source - to, sigma, radius)  # [b, s, s]
    weight = weight + _gauss(source + to, sigma, radius) * (source > 0)
    weight = weight + _gauss(2 * (size - 1) - source - to, sigma, radius) * (source < size - 1)
    weight = (weight / weight.sum(2, keepdim=True))[:, None]  # [b, 1, s, s]
    return torch.matmul(torch.matmul(weight, x), weight.mT)


def _gauss(distance: Tensor, sigma: Tensor, radius: int) -> Tensor:
    return torch.exp(-0.5 * (distance / sigma) ** 2) * (distance.abs() <= radius)
