"""Images for the tests of augmentation."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def noise(n: int, channels: int = 3, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


def smooth(n: int, channels: int = 3, size: int = 32) -> Tensor:
    """Images with the large structures of photographs, and a little grain."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(n, channels, 6, 6, generator=generator) * 255
    x = F.interpolate(coarse, size=(size, size), mode="bicubic")
    return (x + 4 * torch.randn(x.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def counters(n: int) -> tuple[Tensor, Tensor]:
    """Samples and copies."""
    return torch.arange(n), torch.zeros(n, dtype=torch.int64)


def to_pillow(image: Tensor) -> Image.Image:
    """uint8 [c, h, w]"""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def from_pillow(image: Image.Image) -> Tensor:
    """uint8 [c, h, w]"""
    return torch.from_numpy(np.array(image).reshape(image.height, image.width, -1)).permute(2, 0, 1)
