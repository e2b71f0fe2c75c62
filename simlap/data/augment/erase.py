"""Random erasing (Zhong et al. 2020), timm's `pixel` mode: a rectangle of standard normal noise."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simlap import rng
from simlap.data.augment.device import move_all
from simlap.data.augment.geometry import ends

Integers = NDArray[np.int64]

_AREA, _RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)


def erase_boxes(draws: Tensor, size: int) -> Tensor:
    """Rectangles of random erasing, in whole pixels: area 2 to 33 %, aspect ratio 0.3 to 3.3, log-uniform.

    Args:
        draws: uniform [e, 4]: area, ratio, vertical and horizontal position.

    Returns:
        int64 [4, e]: top, left, height, width.
    """
    area = torch.lerp(*ends(_AREA), draws[:, 0]) * size**2
    aspect = torch.lerp(*ends([math.log(end) for end in _RATIO]), draws[:, 1]).exp()
    height = (area * aspect).sqrt().round().clamp(1, size)
    width = (area / aspect).sqrt().round().clamp(1, size)
    top, left = (draws[:, 2] * (size - height + 1)).floor(), (draws[:, 3] * (size - width + 1)).floor()
    return torch.stack((top, left, height, width)).to(torch.int64)


def erase(x: Tensor, rows: Tensor, boxes: Tensor, key: int, samples: Tensor, copies: Tensor) -> None:
    """Fill one rectangle of each of the given rows with standard normal noise, in place.

    Pixel k of a row, counted through all its channels, gets draw k of `rng.uniform(key, sample, copy)`. Only the draws
    of the rectangles are made, since drawing for whole images would be most of the cost of an augmentation.

    Args:
        x: float32 [b, c, s, s], contiguous, normalised.
        rows: int64 [e] on the CPU, the rows to erase.
        boxes: int64 [4, e] on the CPU: top, left, height, width.
        key: of the noise.
        samples, copies: int64 [e] on the CPU, counters of the rows' draws.
    """
    channels, size = x.shape[1], x.shape[-1]
    top, left, height, width = boxes.numpy()
    # all lines of all rectangles, in every channel; then all blocks of four draws that a line needs
    box, number = _enumerate(channels * height)  # [l], number of the line in its rectangle
    channel, below = np.divmod(number, height[box])
    first = (channel * size + top[box] + below) * size + left[box]  # [l], first pixel, counted through the image
    end = first + width[box]
    line, number = _enumerate((end + 3) // 4 - first // 4)  # [n], the line of each block
    block = (first // 4)[line] + number
    box = box[line]
    # the pixels of the blocks, counted from their lines' first ones; those before and after the line are left out
    pixel = (block * 4 - first[line])[:, None] + np.arange(4)  # [n, 4]
    kept = np.flatnonzero((pixel >= 0) & (pixel < (end - first)[line, None]))
    target = ((rows.numpy() * x[0].numel())[box] + block * 4)[kept >> 2] + (kept & 3)
    # on the CPU, for all devices: a GPU would spend more on starting the generator's hundred steps
    counters = (samples.numpy()[box], copies.numpy()[box], block, np.zeros_like(block))
    c0, c1, c2, c3 = (torch.from_numpy(counter) for counter in counters)
    bits = torch.stack(rng.philox((c0, c1, c2, c3), key), dim=1).view(-1)[torch.from_numpy(kept)]
    uniform = (bits >> 9).to(torch.float32).add_(0.5).mul_(1.0 / (1 << 23))  # as in `rng.uniform`
    where, values = move_all([torch.from_numpy(target), torch.special.ndtri(uniform)], x.device)
    x.view(-1).scatter_(0, where, values)


def _enumerate(counts: Integers) -> tuple[Integers, Integers]:
    """For items with so many parts each: the item of every part, and the part's number in its item. [sum]."""
    item = np.repeat(np.arange(len(counts)), counts)
    return item, np.arange(len(item)) - (counts.cumsum() - counts)[item]
