"""Batched augmentation: one resampling, one colour pass, random erasing, normalisation.

Each row's draws depend on (key, sample, copy) alone and have fixed places, so switching one transform on leaves the
others' draws as they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from simlap import rng
from simlap.config.schema import Augment

# Places of the draws of a row. Only the leading ones that are needed are drawn.
_CROP, _FLIP, _ROTATE, _SHIFT, _COLOUR, _ERASE = slice(0, 4), 4, 5, slice(6, 8), slice(8, 10), slice(10, 15)
_ERASE_AREA, _ERASE_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
_LUMA = (0.2989, 0.587, 0.114)


class Augmenter:
    """uint8 images to augmented network input, on the images' device.

    The order is that of the usual pipeline: random resized crop, flip, rotation, translation, brightness and contrast,
    normalisation, random erasing. The four geometric ones are a single bilinear resampling. What falls outside the crop
    repeats the crop's border. Transforms that are switched off cost nothing.
    """

    def __init__(self, augment: Augment, image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self._augment, self._size = augment, image_size
        self._mean, self._std = tuple(mean), tuple(std)
        self._crops = augment.crop_scale != (1.0, 1.0) or augment.crop_ratio != (1.0, 1.0)
        self._moves = augment.rotate > 0 or augment.translate > 0
        self._colours = augment.brightness > 0 or augment.contrast > 0
        wanted = (
            (4, self._crops),
            (5, augment.flip > 0),
            (8, self._moves),
            (10, self._colours),
            (15, augment.erase > 0),
        )
        self._num_draws = max((n for n, on in wanted if on), default=0)

    def draw(self, key: int, samples: Tensor, copies: Tensor) -> Tensor:
        """The uniform draws of rows, float32 [b, n]. Many rows cost little more than a few; arguments as in a call."""
        if not self._num_draws:
            return torch.empty(len(samples), 0)
        return rng.uniform(key, samples, copies, self._num_draws)

    def __call__(
        self, images: Tensor, key: int, samples: Tensor, copies: Tensor, draws: Tensor | None = None
    ) -> Tensor:
        """Augment a batch.

        Args:
            images: uint8 [b, c, h, w].
            key: from `rng.key(seed, "augment", epoch)`.
            samples: int64 [b] on the CPU, index of each image in the training part.
            copies: int64 [b] on the CPU, which copy of the image a row is.
            draws: `draw(key, samples, copies)`, where it was made before.

        Returns:
            float32 [b, c, s, s], normalised.
        """
        # the draws are few: made on the CPU they are the same everywhere, and no device is waited for
        draws = self.draw(key, samples, copies) if draws is None else draws
        x = self._geometry(images, draws)
        if self._colours:
            x = self._colour(x, draws)
        x = to_input(x, self._mean, self._std)
        if self._augment.erase > 0:
            self._erase(x, draws, rng.key("erase", key), samples, copies)
        return x

    def _geometry(self, images: Tensor, draws: Tensor) -> Tensor:
        config, (height, width) = self._augment, images.shape[-2:]
        if not (self._crops or self._moves or config.flip > 0) and (height, width) == (self._size, self._size):
            return images
        if self._crops:
            boxes = crop_boxes(draws[:, _CROP], config.crop_scale, config.crop_ratio, height, width)
        else:
            boxes = torch.tensor([[0.0, 0.0, height, width]]).expand(len(images), 4)
        flip = draws[:, _FLIP] < config.flip if config.flip > 0 else None
        angle = shift = None
        if self._moves:
            angle = (2 * draws[:, _ROTATE] - 1) * math.radians(config.rotate)
            shift = (2 * draws[:, _SHIFT] - 1) * config.translate
        return resample(images, boxes, self._size, flip=flip, angle=angle, shift=shift)

    def _colour(self, x: Tensor, draws: Tensor) -> Tensor:
        """Brightness and contrast in one affine map per image, clamped once (torchvision clamps in between too).

        x: [b, c, s, s] in 0..255.
        """
        x = x.to(torch.float32)
        strength = torch.tensor([self._augment.brightness, self._augment.contrast])
        factors = (1 + (2 * draws[:, _COLOUR] - 1) * strength).to(x.device)
        brightness, contrast = factors[:, 0].view(-1, 1, 1, 1), factors[:, 1].view(-1, 1, 1, 1)
        grey = x if x.shape[1] != 3 else (x * x.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        level = grey.mean((1, 2, 3), keepdim=True) * brightness  # [b, 1, 1, 1]
        return torch.addcmul((1 - contrast) * level, x, brightness * contrast).clamp_(0, 255)

    def _erase(self, x: Tensor, draws: Tensor, key: int, samples: Tensor, copies: Tensor) -> None:
        """Fill a rectangle of the chosen rows with standard normal noise (the authors' `pixel` mode), in place.

        x: [b, c, s, s], normalised.
        """
        chosen = (draws[:, _ERASE.start] < self._augment.erase).nonzero()[:, 0]  # [e]
        if not len(chosen):
            return
        size = x.shape[-1]
        top, left, height, width = erase_boxes(draws[chosen, _ERASE.start + 1 : _ERASE.stop], size).to(x.device)
        pixel = torch.arange(size, device=x.device)
        rows = (pixel >= top[:, None]) & (pixel < (top + height)[:, None])  # [e, s]
        columns = (pixel >= left[:, None]) & (pixel < (left + width)[:, None])
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]  # [e, 1, s, s]
        where = chosen.to(x.device)
        noise = rng.uniform(key, samples[chosen].to(x.device), copies[chosen].to(x.device), x[0].numel())
        x[where] = torch.where(inside, torch.special.ndtri(noise).view(-1, *x.shape[1:]), x[where])


def to_input(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images / 255 - mean) / std, per channel. images: [b, c, h, w] in 0..255, uint8 or float. Returns float32."""
    scale = [1 / (255 * s) for s in std]
    offset = [-m / s for m, s in zip(mean, std, strict=True)]
    if len(scale) == 1:
        return images.to(torch.float32).mul(scale[0]).add_(offset[0])
    constants = torch.tensor([scale, offset]).to(images.device)[:, :, None, None]  # [2, c, 1, 1]
    return torch.addcmul(constants[1], images.to(torch.float32), constants[0])


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
    area = torch.lerp(*_ends(scale), draws[:, 0]) * (height * width)
    aspect = torch.lerp(*_ends([math.log(end) for end in ratio]), draws[:, 1]).exp()
    crop_height = (area / aspect).sqrt().clamp(max=height)
    crop_width = (area * aspect).sqrt().clamp(max=width)
    top, left = draws[:, 2] * (height - crop_height), draws[:, 3] * (width - crop_width)
    return torch.stack((top, left, crop_height, crop_width), dim=1)


def erase_boxes(draws: Tensor, size: int) -> Tensor:
    """Rectangles of random erasing, in whole pixels: area 2 to 33 %, aspect ratio 0.3 to 3.3, log-uniform.

    Args:
        draws: uniform [e, 4]: area, ratio, vertical and horizontal position.

    Returns:
        int64 [4, e]: top, left, height, width.
    """
    area = torch.lerp(*_ends(_ERASE_AREA), draws[:, 0]) * size**2
    aspect = torch.lerp(*_ends([math.log(end) for end in _ERASE_RATIO]), draws[:, 1]).exp()
    height = (area * aspect).sqrt().round().clamp(1, size)
    width = (area / aspect).sqrt().round().clamp(1, size)
    top, left = (draws[:, 2] * (size - height + 1)).floor(), (draws[:, 3] * (size - width + 1)).floor()
    return torch.stack((top, left, height, width)).to(torch.int64)


def resample(
    images: Tensor,
    boxes: Tensor,
    size: int,
    *,
    flip: Tensor | None = None,
    angle: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Crop, resize, flip, rotate and shift in one bilinear interpolation (without antialiasing).

    Args:
        images: [b, c, h, w].
        boxes: [b, 4] in pixels: top, left, height, width.
        size: s, side of the result.
        flip: bool [b], mirror left and right.
        angle: [b] radians, counter-clockwise, about the centre of the crop.
        shift: [b, 2], down and right, as a share of the result's side.

    Returns:
        float32 [b, c, s, s] on the scale of `images`.
    """
    device, (height, width) = images.device, images.shape[-2:]
    # box in the sampler's coordinates, where the image spans [-1, 1]
    extent = boxes[:, 2:] / torch.tensor([height, width])  # [b, 2]
    centre = (2 * boxes[:, :2] + boxes[:, 2:]) / torch.tensor([height, width]) - 1
    edge = (1 - 1 / boxes[:, 2:]).clamp(min=0)  # centre of the crop's last pixel, where the crop spans [-1, 1]
    mirror = torch.ones(len(boxes)) if flip is None else 1 - 2 * flip.to(torch.float32)
    packed = torch.cat((extent, centre, edge, mirror[:, None]), dim=1).to(device)[..., None]  # [b, 7, 1]
    extent_y, extent_x, centre_y, centre_x, edge_y, edge_x, mirror = packed.unbind(1)  # [b, 1] each
    y = x = (torch.arange(size, device=device) * 2 + 1) / size - 1  # [s], centres of the result's pixels
    if angle is not None or shift is not None:
        if shift is None:
            shift = torch.zeros(len(boxes), 2)
        if angle is None:
            angle = torch.zeros(len(boxes))
        moves = torch.stack((2 * shift[:, 0], 2 * shift[:, 1], angle.cos(), angle.sin())).to(device)[..., None, None]
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
    return F.grid_sample(images.to(torch.float32), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _ends(interval: Sequence[float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(interval[0]), torch.tensor(interval[1])
