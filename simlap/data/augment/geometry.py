"""Random resized crop, flip, rotation and translation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from simlap.data.augment.device import move

Interpolation = Literal["bilinear", "bicubic"]
_RADIUS = {"bilinear": 1, "bicubic": 2}
# weights are whole multiples of 2^-15: with 8-bit pixels all products and sums are exact in float32, and a row's result
# cannot depend on how the matrix product orders its sums
_QUANTUM = 2.0**15
# a CPU is faster with parts of a batch that its caches hold; a GPU takes all rows at once
_ROWS = 64


def crop_boxes(
    draws: Tensor, scale: tuple[float, float], ratio: tuple[float, float], height: int, width: int
) -> Tensor:
    """Boxes of a random resized crop: area uniform, aspect ratio log-uniform, position uniform.

    As torchvision's, but with sides in fractions of a pixel, and a side longer than the image is cut to the image where
    torchvision draws again.

    Args:
        draws: uniform [b, 4]: area, ratio, vertical and horizontal position.
        scale: lowest and highest area, as a share of the image.
        ratio: lowest and highest width / height.

    Returns:
        [b, 4] in pixels: top, left, height, width.
    """
    area = torch.lerp(*ends(scale), draws[:, 0]) * (height * width)
    aspect = torch.lerp(*ends([math.log(end) for end in ratio]), draws[:, 1]).exp()
    crop_height = (area / aspect).sqrt().clamp(max=height)
    crop_width = (area * aspect).sqrt().clamp(max=width)
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
    if y.shape[1] == size and angle is None:
        y, x = y[:, :, None].expand(-1, -1, size), x[:, None, :].expand(-1, size, -1)
    grid = torch.stack((x.reshape(-1, size, size), y.reshape(-1, size, size)), dim=3)  # [b, s, s, 2]
    x = F.grid_sample(images.to(torch.float32), grid, mode=interpolation, padding_mode="border", align_corners=False)
    return x.clamp_(0, 255) if interpolation == "bicubic" else x


def resized_crop(
    images: Tensor, boxes: Tensor, size: int, *, flip: Tensor | None = None, interpolation: Interpolation = "bicubic"
) -> Tensor:
    """Crop, resize and flip as Pillow's `resize` does: antialiased, horizontally, then vertically, each to 8 bits.

    Two matrix products per image. For boxes in whole pixels the result is that of Pillow's crop and resize, but for a grey
    level where its finer weights round the other way, or where it takes the two directions in the other order. Fractions
    of a pixel are cropped in proportion.

    Args:
        images: uint8 [b, c, h, w].
        boxes: [b, 4] on the CPU, in pixels: top, left, height, width.
        size: s, side of the result.
        flip: bool [b] on the CPU, mirror left and right.
        interpolation: Pillow's kernel of that name (bicubic has a = -0.5).

    Returns:
        uint8 [b, c, s, s].
    """
    device, (batch, channels, height, width) = images.device, images.shape
    mirrored = torch.zeros(batch, dtype=torch.bool) if flip is None else flip
    packed = move(torch.cat((boxes, mirrored[:, None].to(boxes.dtype)), dim=1), device)  # [b, 5]
    rows = _resize_weights(packed[:, 0], packed[:, 2], torch.zeros_like(packed[:, 4]), height, size, interpolation)
    columns = _resize_weights(packed[:, 1], packed[:, 3], packed[:, 4], width, size, interpolation)
    result = torch.empty(batch, channels, size, size, dtype=torch.uint8, device=device)
    step = _ROWS if device.type == "cpu" else batch
    for first in range(0, batch, step):
        part = slice(first, first + step)
        x = images[part].to(torch.float32).reshape(-1, channels * height, width)
        x = torch.bmm(x, columns[part].mT).add_(0.5).floor_().clamp_(0, 255)  # [step, c*h, s]
        x = torch.matmul(rows[part, None], x.view(-1, channels, height, size))  # [step, c, s, s]
        result[part] = x.add_(0.5).clamp_(0, 255)
    return result


def _resize_weights(
    start: Tensor, length: Tensor, mirrored: Tensor, side: int, size: int, interpolation: Interpolation
) -> Tensor:
    """The linear map of one axis, as in Pillow's `precompute_coeffs`.

    Args:
        start: [b] where the crop begins, in pixels.
        length: [b] of the crop.
        mirrored: [b], 1 where the result is reversed, else 0.

    Returns:
        [b, s, side]: share of each pixel in each result.
    """
    device, radius = start.device, _RADIUS[interpolation]
    start, length, mirrored = start[:, None], length[:, None], mirrored[:, None]  # [b, 1]
    scale = length / size
    widening = scale.clamp(min=1)  # of the kernel, against aliasing
    position = torch.arange(size, device=device) + 0.5  # [s]
    centre = start + (position + mirrored * (size - 2 * position)) * scale  # [b, s]
    # how many taps depends on the sides alone, so that a row's weights are those it has in any batch
    taps = torch.arange(2 * math.ceil(radius * max(1.0, side / size)) + 1, device=device)
    pixel = (centre - radius * widening + 0.5).floor()[..., None] + taps  # [b, s, k]
    weight = _kernel((pixel + 0.5 - centre[..., None]) / widening[..., None], interpolation)
    # 1e-3: a box's edge that is a whole number but for rounding
    inside = (pixel >= (start + 1e-3).floor()[..., None]) & (pixel < (start + length - 1e-3).ceil()[..., None])
    weight = weight * inside
    weight = (weight / weight.sum(2, keepdim=True) * _QUANTUM).round_() / _QUANTUM
    result = torch.zeros(len(start), size, side, device=device)
    return result.scatter_add_(2, pixel.to(torch.int64).clamp_(0, side - 1), weight)


def _kernel(x: Tensor, interpolation: Interpolation) -> Tensor:
    x = x.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp_(min=0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, near, far).masked_fill_(x >= 2, 0.0)


def ends(interval: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Lowest and highest as tensors, for `torch.lerp`."""
    return torch.tensor(interval[0]), torch.tensor(interval[1])
