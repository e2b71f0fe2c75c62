"""Random erasing (Zhong et al. 2020), timm's `pixel` mode: a rectangle of standard normal noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simlap import rng
from simlap.data.augment.device import move
from simlap.data.augment.geometry import ends

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
    top, left, height, width = boxes
    # all lines of all rectangles, in every channel; then all blocks of four draws that a line needs
    box, number = _enumerate(channels * height)  # [l], number of the line in its rectangle
    line = number // height[box] * size + top[box] + number % height[box]
    first = line * size + left[box]  # [l], the line's first pixel, counted through the image
    last = first + width[box] - 1
    of, number = _enumerate(last // 4 - first // 4 + 1)  # [n], the line of each block
    block = first[of] // 4 + number
    pixel = block[:, None] * 4 + torch.arange(4)  # [n, 4]
    kept = ((pixel >= first[of, None]) & (pixel <= last[of, None])).flatten().nonzero()[:, 0]
    target = (pixel + (rows[box[of]] * x[0].numel())[:, None]).flatten()[kept]
    counters = move(torch.stack((samples[box[of]], copies[box[of]], block, torch.zeros_like(block))), x.device)
    c0, c1, c2, c3 = counters
    bits = torch.stack(rng.philox((c0, c1, c2, c3), key), dim=1).flatten()[move(kept, x.device)]
    uniform = ((bits >> 9).to(torch.float32) + 0.5) * (1.0 / (1 << 23))  # as in `rng.uniform`
    x.view(-1).index_copy_(0, move(target, x.device), torch.special.ndtri(uniform))


def _enumerate(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For items with so many parts each: the item of every part, and the part's number in its item. int64 [sum]."""
    item = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return item, torch.arange(len(item)) - (counts.cumsum(0) - counts)[item]
