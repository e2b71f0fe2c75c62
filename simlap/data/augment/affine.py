"""Pillow's `Image.transform(AFFINE)` and `Image.rotate` in batches."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from simlap.data.augment.device import constant
from simlap.data.augment.geometry import Interpolation

Axes = Literal["x", "y", "xy"]
# Pillow truncates; a whole number that comes out a rounding error too small must not lose a grey level
_SLACK = 1e-3


def affine(
    images: Tensor, coefficients: Tensor, fill: tuple[float, ...], interpolation: Interpolation, axes: Axes
) -> Tensor:
    """Each pixel (x, y) of the result is taken from (a x + b y + c, d x + e y + f), in pixels, centres at 0.5.

    Args:
        images: uint8 [n, c, s, s].
        coefficients: [n, 6] a to f on the images' device. With `axes` x only b and c count (a is 1, y stays), with y only d
            and f.
        fill: c grey levels, where the source is outside of the image.
        interpolation: Pillow's kernels of `transform` (its bicubic has a = -1).
        axes: which coordinates change. One needs 4 pixels for each of the result where both need 16.

    Returns:
        uint8 [n, c, s, s]. As Pillow's, but for a grey level where float32 falls on the other side of a whole number.
    """
    count, channels, size = images.shape[:3]
    pixel = torch.arange(size, device=images.device, dtype=torch.int32)
    across, down = pixel + 0.5, (pixel + 0.5)[:, None]  # [s], [s, 1]
    a, b, c, d, e, f = coefficients[:, :, None, None].unbind(1)  # [n, 1, 1] each
    # an axis that stays has one tap, of weight 1; shifts of one axis are constant along it
    x_pixels, y_pixels = pixel[:, None], pixel[:, None, None]  # [s, 1], [s, 1, 1]
    x_weights = y_weights = torch.ones(1, device=images.device)
    inside = torch.ones(1, dtype=torch.bool, device=images.device)
    if axes != "y":
        shift = b * down + c if axes == "x" else (a - 1) * across + b * down + c  # [n, s, 1] or [n, s, s]
        x_pixels, x_weights, within = _taps(pixel, shift, size, interpolation)
        inside = inside & within
    if axes != "x":
        shift = d * across + f if axes == "y" else d * across + (e - 1) * down + f  # [n, 1, s] or [n, s, s]
        y_pixels, y_weights, within = _taps(pixel[:, None], shift, size, interpolation)
        inside = inside & within
    first = (torch.arange(count, device=images.device, dtype=torch.int32) * size**2).view(-1, 1, 1, 1)
    index = (y_pixels * size + first)[..., None] + x_pixels[..., None, :]  # [n, s, s, k, k]
    weight = (y_weights[..., None] * x_weights[..., None, :]).expand(index.shape)
    taps = index.shape[-2] * index.shape[-1]
    # a weighted sum of pixels for each pixel of the result, each sum on its own, in the order of its taps
    table = images.permute(0, 2, 3, 1).reshape(-1, channels).to(torch.float32)  # [n*s*s, c]
    result = F.embedding_bag(index.reshape(-1, taps), table, mode="sum", per_sample_weights=weight.reshape(-1, taps))
    result = result.add_(_SLACK).clamp_(0, 255).view(count, size, size, channels)
    result = torch.where(inside[..., None], result, constant(fill, images.device))
    return result.to(torch.uint8).permute(0, 3, 1, 2)


def _taps(pixel: Tensor, shift: Tensor, size: int, interpolation: Interpolation) -> tuple[Tensor, Tensor, Tensor]:
    """Where a result at `pixel` of an axis comes from, `shift` pixels further.

    Args:
        pixel: int32, broadcastable with `shift` to [n, s, s].

    Returns:
        int32 [n, s, s, k] pixels of the axis; their weights, shaped as `shift` and [k]; whether the source is in the image.
    """
    base = shift.floor()
    t = shift - base
    if interpolation == "bilinear":
        first, weights = 0, [1 - t, t]
    else:
        # Pillow's BICUBIC macro, sorted by pixel
        square, cube = t * t, t * t * t
        first, weights = -1, [2 * square - cube - t, 1 - 2 * square + cube, t + square - cube, cube - square]
    offsets = torch.arange(first, first + len(weights), device=shift.device, dtype=torch.int32)
    source = pixel + base.to(torch.int32)
    pixels = (source[..., None] + offsets).clamp_(0, size - 1)
    position = pixel + 0.5 + shift
    return pixels, torch.stack(weights, dim=-1), (position >= 0) & (position < size)
