"""Channels of images: grey and colour, and statistics per channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK = 4096


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Images with so many channels: grey is repeated, colours become luma (ITU-R 601-2, rounded as Pillow does).

    Args:
        images: uint8 [n, 1 or 3, h, w].
        channels: 1 or 3.

    Returns:
        uint8 [n, channels, h, w]; `images` itself where it has so many.
    """
    have = images.shape[1]
    if have == channels:
        return images
    if {have, channels} != {1, 3}:
        raise ValueError(f"cannot make {channels} channels of {have}")
    if have == 1:
        return images.expand(-1, 3, -1, -1).contiguous()
    out = images.new_empty((len(images), 1, *images.shape[2:]))
    for first in range(0, len(images), _CHUNK):
        red, green, blue = images[first : first + _CHUNK].to(torch.int32).unbind(1)
        luma = (red * 19595 + green * 38470 + blue * 7471 + (1 << 15)) >> 16
        out[first : first + _CHUNK, 0] = luma.to(torch.uint8)
    return out


def channel_histograms(images: Tensor) -> Tensor:
    """How often each value occurs in each channel of uint8 images [n, c, h, w]: int64 [c, 256]."""
    histograms = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for channel, histogram in enumerate(histograms):
        for chunk in images[:, channel].split(_CHUNK):
            histogram += torch.bincount(chunk.flatten(), minlength=256)
    return histograms


def statistics_of(histograms: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, scaled to [0, 1], from `channel_histograms` of at least one image.

    In integer arithmetic, so the same on every machine. A constant channel gets standard deviation 1.
    """
    means, stds = [], []
    for counts in histograms.tolist():
        total = sum(counts)
        first = sum(value * count for value, count in enumerate(counts))
        second = sum(value * value * count for value, count in enumerate(counts))
        means.append(first / total / 255)
        stds.append(math.sqrt(total * second - first * first) / total / 255 or 1.0)
    return tuple(means), tuple(stds)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images [n, c, h, w], scaled to [0, 1]."""
    return statistics_of(channel_histograms(images))
