"""Pillow's `Image.transform(AFFINE)` and `Image.rotate` in batches.

Equal to Pillow's, but for a grey level where float32 falls on the other side of a whole number. Sums are made of separate
products and additions in the order of the taps, so that a row's result is the same in any batch. What falls outside of the
image is 0 here until its grey level is added: `torch.where` and truth values take a CPU longer than arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from simlap.data.augment.geometry import Interpolation

# Pillow truncates; a whole number that comes out a rounding error too small must not lose a grey level
_SLACK = 1e-3


def affine(images: Tensor, coefficients: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Each pixel (x, y) of the result is taken from (a x + b y + c, d x + e y + f), in pixels, centres at 0.5.

    Args:
        images: uint8 [n, c, s, s].
        coefficients: [n, 6] a to f on the images' device.
        fill: float32 [c] grey levels on the images' device, where the source is outside of the image.
        interpolation: Pillow's kernels of `transform` (its bicubic has a = -1).

    Returns:
        uint8 [n, c, s, s].
    """
    size = images.shape[-1]
    centre = torch.arange(size, device=images.device) + 0.5
    # of x and y, as shifts: an axis that stays has one of exactly 0
    own = coefficients.view(-1, 2, 3) - torch.eye(2, 3, device=images.device)
    across, down, offset = own[..., None, None].unbind(2)  # [n, 2, 1, 1]: a - 1 and d, b and e - 1, c and f
    shift = across * centre + down * centre[:, None] + offset  # [n, 2, s, s]
    base = shift.floor()
    first, weights = _weights(shift - base, interpolation)
    itself = torch.stack((centre.expand(size, size), centre[:, None].expand(size, size)))  # [2, s, s]
    inside = _inside(shift + itself, size).prod(1, keepdim=True)  # [n, 1, s, s]
    # the pixel below the source, in an image of s + 1 pixels from -1 on that spans [-1, 1]
    place = (base + itself).add_(0.5).mul_(2 / size).sub_(1).permute(0, 2, 3, 1)  # [n, s, s, 2]
    padded = F.pad(images.to(torch.float32) - fill.view(-1, 1, 1), (2, 2, 2, 2), mode="replicate")
    gather = _tap_by_tap if images.device.type == "cpu" else _all_taps
    result = gather(padded, place, first, [(weight[:, 1], weight[:, 0]) for weight in weights])
    return _finished(result.mul_(inside), fill)


def _tap_by_tap(padded: Tensor, place: Tensor, first: int, weights: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Sums over taps, in parts that a CPU's caches hold.

    Args:
        padded: float32 [n, c, s + 4, s + 4], two more pixels on each side.
        place: [n, s, s, 2] of the pixel below the source, for `grid_sample`, in an image of s + 1 pixels from -1 on.
        first: the first tap, counted from that pixel.
        weights: of the taps, [n, s, s] for rows and for columns.

    Returns:
        float32 [n, c, s, s].
    """
    extent = padded.shape[-1] - 3
    result = torch.zeros((*padded.shape[:2], extent - 1, extent - 1), device=padded.device)
    # a tap is that same place in an image that begins some pixels further
    for row, (of_row, _) in enumerate(weights, 1 + first):
        for column, (_, of_column) in enumerate(weights, 1 + first):
            part = padded[..., row : row + extent, column : column + extent]
            taken = F.grid_sample(part, place, mode="nearest", padding_mode="zeros", align_corners=True)
            result += taken.mul_((of_row * of_column)[:, None])
    return result


def _all_taps(padded: Tensor, place: Tensor, first: int, weights: list[tuple[Tensor, Tensor]]) -> Tensor:
    """`_tap_by_tap` in one step, for a GPU."""
    extent, taps = padded.shape[-1] - 3, slice(1 + first, 1 + first + len(weights))
    windows = (
        padded.unfold(2, extent, 1).unfold(3, extent, 1)[:, :, taps, taps].flatten(2, 3)
    )  # [n, c, k*k, s + 1, s + 1]
    taken = F.grid_sample(windows.flatten(1, 2), place, mode="nearest", padding_mode="zeros", align_corners=True)
    rows, columns = (torch.stack(of, dim=1) for of in zip(*weights, strict=True))  # [n, k, s, s]
    weight = (rows[:, :, None] * columns[:, None]).flatten(1, 2)
    return taken.view(*windows.shape[:3], extent - 1, extent - 1).mul_(weight[:, None]).sum(2)


def shift_columns(images: Tensor, shifts: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """`affine` where each column moves along itself, with a quarter of the taps and a window for all of a column's.

    Args:
        images: uint8 [n, c, s, s].
        shifts: [n, s] for each column, pixels that its source lies further down.
        fill, interpolation: as for `affine`.

    Returns:
        uint8 [n, c, s, s].
    """
    size = images.shape[-1]
    base = shifts.floor()
    first, weights = _weights(shifts - base, interpolation)
    count, channels, taps = len(images), images.shape[1], len(weights)
    window = torch.arange(
        first, first + size + taps - 1, device=images.device, dtype=torch.int32
    )  # all that a column needs
    index = (base.to(torch.int32)[:, None] + window[:, None]).clamp_(0, size - 1).mul_(size)  # [n, s + k - 1, s]
    index += torch.arange(size, device=images.device, dtype=torch.int32)
    plane = (
        torch.arange(count * channels, device=images.device, dtype=torch.int32).view(count, channels, 1, 1) * size**2
    )
    levels = images.to(torch.float32) - fill.view(-1, 1, 1)
    taken = levels.view(-1).index_select(0, (index[:, None] + plane).view(-1)).view(count, channels, -1, size)
    inside = _inside((torch.arange(size, device=images.device) + 0.5)[:, None] + shifts[:, None], size)  # [n, s, s]
    shares = torch.stack(weights, dim=1)[:, :, None] * inside[:, None]  # [n, k, s, s]
    result = torch.zeros(images.shape, device=images.device)
    for tap in range(taps):
        result += taken[:, :, tap : tap + size] * shares[:, tap, None]
    return _finished(result, fill)


def shift_lines(images: Tensor, shifts: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """`affine` where all columns move by the same: whole lines are taken.

    Args:
        images: uint8 [n, c, s, s].
        shifts: [n] pixels that the source lies further down.
        fill, interpolation: as for `affine`.

    Returns:
        uint8 [n, c, s, s].
    """
    count, channels, size = images.shape[:3]
    base = shifts.floor()
    first, weights = _weights(shifts - base, interpolation)
    window = torch.arange(first, first + size + len(weights) - 1, device=images.device)
    index = (base.to(torch.int64)[:, None] + window).clamp_(0, size - 1)  # [n, s + k - 1]
    plane = torch.arange(count * channels, device=images.device).view(count, channels, 1) * size
    levels = images.to(torch.float32) - fill.view(-1, 1, 1)
    taken = levels.view(-1, size).index_select(0, (index[:, None] + plane).view(-1)).view(count, channels, -1, size)
    result = torch.zeros(images.shape, device=images.device)
    for tap, weight in enumerate(weights):
        result += taken[:, :, tap : tap + size] * weight[:, None, None, None]
    inside = _inside(torch.arange(size, device=images.device) + 0.5 + shifts[:, None], size)  # [n, s]
    return _finished(result.mul_(inside[:, None, :, None]), fill)


def _inside(position: Tensor, size: int) -> Tensor:
    """1 in the image, 0 outside. Changes `position`."""
    return position.clone().ge_(0).mul_(position.lt_(size))


def _finished(result: Tensor, fill: Tensor) -> Tensor:
    return result.add_((fill + _SLACK).view(-1, 1, 1)).clamp_(0, 255).to(torch.uint8)


def _weights(t: Tensor, interpolation: Interpolation) -> tuple[int, list[Tensor]]:
    """The first tap, counted from the pixel below the source, and the taps' weights.

    Args:
        t: how far the source lies beyond that pixel.
    """
    if interpolation == "bilinear":
        return 0, [1 - t, t]
    # Pillow's BICUBIC macro, sorted by pixel
    square, cube = t * t, t * t * t
    return -1, [2 * square - cube - t, 1 - 2 * square + cube, t + square - cube, cube - square]
