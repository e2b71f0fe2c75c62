"""Random resized crop, flip, rotation and translation."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from simlap.data.augment.device import move, move_all

Interpolation = Literal["bilinear", "bicubic"]
_RADIUS = {"bilinear": 1, "bicubic": 2}
# weights are whole multiples of 2^-15: with 8-bit pixels all products and sums are exact in float32, and a row's result
# cannot depend on how the matrix product orders its sums
_QUANTUM = 2.0**15
# a CPU is faster with parts of a batch that its caches hold; a GPU takes all rows at once
_ROWS = 64
# numbers in the maps of all crops of an image, where they are few enough to be kept (32 MiB)
_KEPT = 2**23


def crop_boxes(
    draws: Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    height: int,
    width: int,
    *,
    whole: bool = False,
) -> Tensor:
    """Boxes of a random resized crop: area uniform, aspect ratio log-uniform, position uniform.

    As torchvision's, but that a side longer than the image is cut to the image where torchvision draws again.

    Args:
        draws: uniform [b, 4]: area, ratio, vertical and horizontal position.
        scale: lowest and highest area, as a share of the image.
        ratio: lowest and highest width / height.
        whole: in whole pixels, as torchvision's (int64); else in fractions of them (float32).

    Returns:
        [b, 4] in pixels: top, left, height, width.
    """
    area = torch.lerp(*ends(scale), draws[:, 0]) * (height * width)
    aspect = torch.lerp(*ends([math.log(end) for end in ratio]), draws[:, 1]).exp()
    crop_height = (area / aspect).sqrt().clamp(max=height)
    crop_width = (area * aspect).sqrt().clamp(max=width)
    if whole:
        crop_height, crop_width = crop_height.round().clamp(min=1), crop_width.round().clamp(min=1)
        top = (draws[:, 2] * (height - crop_height + 1)).floor()
        left = (draws[:, 3] * (width - crop_width + 1)).floor()
        return torch.stack((top, left, crop_height, crop_width), dim=1).to(torch.int64)
    top, left = draws[:, 2] * (height - crop_height), draws[:, 3] * (width - crop_width)
    return torch.stack((top, left, crop_height, crop_width), dim=1)


def resample(
    images: Tensor,
    boxes: Tensor,
    size: int,
    *,
    flip: Tensor | None = None,
    angle: Tensor | None = None,
    shift: Tensor | None = None,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Crop, resize, flip, rotate and shift in one interpolation (without antialiasing).

    Args:
        images: [b, c, h, w] in 0..255.
        boxes: [b, 4] in pixels: top, left, height, width.
        size: s, side of the result.
        flip: bool [b], mirror left and right.
        angle: [b] radians, counter-clockwise, about the centre of the crop.
        shift: [b, 2], down and right, as a share of the result's side.
        interpolation: torch's; its bicubic kernel has a = -0.75, where Pillow's has -0.5.

    Returns:
        float32 [b, c, s, s] on the scale of `images`.
    """
    device, (height, width) = images.device, images.shape[-2:]
    # box in the sampler's coordinates, where the image spans [-1, 1]
    extent = boxes[:, 2:] / torch.tensor([height, width])  # [b, 2]
    centre = (2 * boxes[:, :2] + boxes[:, 2:]) / torch.tensor([height, width]) - 1
    edge = (1 - 1 / boxes[:, 2:]).clamp(min=0)  # centre of the crop's last pixel, where the crop spans [-1, 1]
    mirror = torch.ones(len(boxes)) if flip is None else 1 - 2 * flip.to(torch.float32)
    packed = move(torch.cat((extent, centre, edge, mirror[:, None]), dim=1), device)[..., None]  # [b, 7, 1]
    extent_y, extent_x, centre_y, centre_x, edge_y, edge_x, mirror = packed.unbind(1)  # [b, 1] each
    y = x = (torch.arange(size, device=device) * 2 + 1) / size - 1  # [s], centres of the result's pixels
    if angle is not None or shift is not None:
        if shift is None:
            shift = torch.zeros(len(boxes), 2)
        if angle is None:
            angle = torch.zeros(len(boxes))
        moves = torch.stack((2 * shift[:, 0], 2 * shift[:, 1], angle.cos(), angle.sin()))
        moves = move(moves, device)[..., None, None]
        y, x = y[:, None] - moves[0], x[None] - moves[1]  # [b, s, 1], [b, 1, s]
        y, x = moves[3] * x + moves[2] * y, moves[2] * x - moves[3] * y  # [b, s, s]
        y, x = y.flatten(1), x.flatten(1)  # [b, s*s]
    else:
        y, x = y.expand(len(boxes), size), x.expand(len(boxes), size)  # [b, s]
    y = y.clamp(-edge_y, edge_y) * extent_y + centre_y
    x = (x * mirror).clamp(-edge_x, edge_x) * extent_x + centre_x
    grid = torch.empty(len(boxes), size, size, 2, device=device)
    whole = y.shape[1] != size or angle is not None  # each pixel has coordinates of its own
    grid[..., 0] = x.view(-1, size, size) if whole else x[:, None, :]
    grid[..., 1] = y.view(-1, size, size) if whole else y[:, :, None]
    x = F.grid_sample(images.to(torch.float32), grid, mode=interpolation, padding_mode="border", align_corners=False)
    return x.clamp_(0, 255) if interpolation == "bicubic" else x


def resized_crop(
    images: Tensor, boxes: Tensor, size: int, *, flip: Tensor | None = None, interpolation: Interpolation = "bicubic"
) -> Tensor:
    """Crop, resize and flip as Pillow's `resize` does: antialiased, horizontally, then vertically, each to 8 bits.

    Two matrix products per image. The result is that of Pillow's crop and resize, but for a grey level where its finer
    weights round the other way, or where it takes the two directions in the other order.

    Args:
        images: uint8 [b, c, h, w].
        boxes: int64 [b, 4] on the CPU, in pixels: top, left, height, width.
        size: s, side of the result.
        flip: bool [b] on the CPU, mirror left and right.
        interpolation: Pillow's kernel of that name (bicubic has a = -0.5).

    Returns:
        uint8 [b, c, s, s].
    """
    device, (batch, channels, height, width) = images.device, images.shape
    mirrored = torch.zeros(batch, dtype=torch.int64) if flip is None else flip.to(torch.int64)
    top, left, tall, wide = boxes.unbind(1)
    vertical, horizontal = torch.stack((top, tall, torch.zeros_like(top))), torch.stack((left, wide, mirrored))
    rows, which_rows = _resize_maps(vertical, height, size, interpolation, device)
    columns, which_columns = _resize_maps(horizontal, width, size, interpolation, device)
    result = torch.empty(batch, channels, size, size, dtype=torch.uint8, device=device)
    step = min(batch, _ROWS) if device.type == "cpu" else batch
    buffers = [torch.empty(step * channels * height * side, device=device) for side in (width, size)]
    for first in range(0, batch, step):
        part = slice(first, first + step)
        count = len(images[part])
        # a line of all channels side by side: each direction is then one product
        x = buffers[0][: count * channels * height * width].view(count, height, channels, width)
        x.copy_(images[part].permute(0, 2, 1, 3))
        y = buffers[1][: count * channels * height * size].view(count, height * channels, size)
        torch.bmm(x.view(count, -1, width), columns.index_select(0, which_columns[part]).mT, out=y)
        y.round_().clamp_(0, 255)
        x = torch.bmm(rows.index_select(0, which_rows[part]), y.view(count, height, -1))  # [step, s, c*s]
        result[part] = x.add_(0.5).clamp_(0, 255).view(count, size, channels, size).permute(0, 2, 1, 3)
    return result


def _resize_maps(
    spans: Tensor, side: int, size: int, interpolation: Interpolation, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The linear maps of one axis.

    Args:
        spans: int64 [3, n] on the CPU: where the crop begins and how long it is, in pixels; 1 where the result is reversed,
            else 0.

    Returns:
        Maps [u, s, side], and int64 [n], the map of each span. Both on the device.
    """
    numbers = (spans[0] * (side + 1) + spans[1]) * 2 + spans[2]
    if 2 * side * (side + 1) * side * size <= _KEPT:  # all that there are
        return _all_maps(side, size, interpolation, device), move(numbers, device)
    _, first, places = np.unique(numbers.numpy(), return_index=True, return_inverse=True)
    distinct, index = move_all([spans[:, torch.from_numpy(first)], torch.from_numpy(places)], device)
    return _resize_weights(distinct, side, size, interpolation), index


@functools.lru_cache(maxsize=8)
def _all_maps(side: int, size: int, interpolation: Interpolation, device: torch.device) -> Tensor:
    numbers = torch.arange(2 * side * (side + 1))
    spans = torch.stack((numbers // (2 * (side + 1)), numbers // 2 % (side + 1), numbers % 2))
    return _resize_weights(move(spans, device), side, size, interpolation)  # those beyond the image are never asked for


def _resize_weights(spans: Tensor, side: int, size: int, interpolation: Interpolation) -> Tensor:
    """The linear maps of one axis, as in Pillow's `precompute_coeffs`.

    Args:
        spans: [3, u], as for `_resize_maps`.

    Returns:
        [u, s, side]: share of each pixel in each result.
    """
    device, radius = spans.device, _RADIUS[interpolation]
    start, length, mirrored = spans.to(torch.float32)[..., None].unbind(0)  # [u, 1]
    scale = length / size
    widening = scale.clamp(min=1)  # of the kernel, against aliasing
    position = torch.arange(size, device=device) + 0.5  # [s]
    centre = start + (position + mirrored * (size - 2 * position)) * scale  # [u, s]
    # how many taps depends on the sides alone, so that a row's weights are those it has in any batch
    taps = torch.arange(2 * math.ceil(radius * max(1.0, side / size)) + 1, device=device)
    pixel = (centre - radius * widening + 0.5).floor_() + taps[:, None, None]  # [k, u, s]
    weight = _kernel((pixel + (0.5 - centre)).div_(widening), interpolation)
    # 1e-3: a box's edge that is a whole number but for rounding
    weight.masked_fill_(pixel < (start + 1e-3).floor_(), 0.0).masked_fill_(
        pixel >= (start + length - 1e-3).ceil_(), 0.0
    )
    weight.mul_(_QUANTUM / weight.sum(0)).round_().mul_(1 / _QUANTUM)
    result = torch.zeros(len(start), size, side, device=device)
    pixel = pixel.clamp_(0, side - 1).to(torch.int64)
    return result.scatter_add_(2, pixel.permute(1, 2, 0), weight.permute(1, 2, 0))


def _kernel(x: Tensor, interpolation: Interpolation) -> Tensor:
    """In place."""
    x = x.abs_()
    if interpolation == "bilinear":
        return x.neg_().add_(1).clamp_(min=0)
    x = x.clamp_(max=2)  # where the far branch ends, at 0
    near = (1.5 * x).sub_(2.5).mul_(x).mul_(x).add_(1)
    far = (-0.5 * x).add_(2.5).mul_(x).sub_(4).mul_(x).add_(2)
    return torch.where(x < 1, near, far)


def ends(interval: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Lowest and highest as tensors, for `torch.lerp`."""
    return torch.tensor(interval[0]), torch.tensor(interval[1])
