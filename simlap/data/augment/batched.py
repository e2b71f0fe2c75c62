"""Batched augmentation: the order of the transforms and the draws of each row.

Each row's draws depend on (key, sample, copy) alone and have fixed places, so switching one transform on leaves the
others' draws as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simlap import rng
from simlap.config.schema import Augment
from simlap.data.augment import colour
from simlap.data.augment.device import move
from simlap.data.augment.erase import erase, erase_boxes
from simlap.data.augment.filters import blur
from simlap.data.augment.geometry import crop_boxes, ends, resample, resized_crop
from simlap.data.augment.normalise import to_input
from simlap.data.augment.rand_augment import RandAugment, parse_rand_augment

# Places of the draws of a row. Only the leading ones that are needed are drawn. RandAugment's come last: how many there are
# depends on its number of layers.
_CROP, _FLIP, _ROTATE, _SHIFT, _COLOUR, _ERASE = slice(0, 4), 4, 5, slice(6, 8), slice(8, 10), slice(10, 15)
_JITTER, _SATURATION, _HUE, _GREY, _BLUR, _SIGMA, _SOLARISE, _THREE, _THREE_SIGMA, _LAYERS = range(15, 25)


class Augmenter:
    """uint8 images to augmented network input, on the images' device.

    The order is that of timm's training transform: random resized crop, flip, rotation, translation, RandAugment or
    three-augment, brightness, contrast, saturation, hue (in this order, where torchvision draws one), grey, blur, solarise,
    normalisation, random erasing. Transforms that are switched off cost nothing.

    With bilinear interpolation and images no larger than the result, the geometric transforms are one resampling. Else the
    crop is Pillow's, antialiased, and rotation and translation are a second resampling. What falls outside the crop repeats
    its border. The images have 8 bits per channel before RandAugment, as Pillow's, and are floats after it.

    Raises:
        ConfigError: where `rand_augment` cannot be read.
    """

    def __init__(self, augment: Augment, image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self._augment, self._size = augment, image_size
        self._mean, self._std = tuple(mean), tuple(std)
        self._crops = augment.crop_scale != (1.0, 1.0) or augment.crop_ratio != (1.0, 1.0)
        self._moves = augment.rotate > 0 or augment.translate > 0
        self._tones = augment.brightness > 0 or augment.contrast > 0
        self._tints = augment.saturation > 0 or augment.hue > 0
        self._layers: RandAugment | None = None
        if augment.rand_augment is not None:
            self._layers = RandAugment(
                parse_rand_augment(augment.rand_augment), self._mean, augment.interpolation
            )  # fmt: skip
        wanted = (
            (4, self._crops),
            (5, augment.flip > 0),
            (8, self._moves),
            (10, self._tones),
            (15, augment.erase > 0),
            (_JITTER + 1, (self._tones or self._tints) and augment.jitter < 1),
            (_HUE + 1, self._tints),
            (_GREY + 1, augment.grey > 0),
            (_SIGMA + 1, augment.blur > 0),
            (_SOLARISE + 1, augment.solarise > 0),
            (_THREE_SIGMA + 1, augment.three_augment),
            (_LAYERS + (self._layers.num_draws if self._layers else 0), self._layers is not None),
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
        # the result itself is made outside of inference mode: a network saves it for its gradients
        x = to_input(self._levels(images, draws), self._mean, self._std)
        if self._augment.erase > 0:
            rows = _rows(draws[:, _ERASE.start] < self._augment.erase)
            boxes = erase_boxes(draws[rows, _ERASE.start + 1 : _ERASE.stop], self._size)
            erase(x, rows, boxes, rng.key("erase", key), samples[rows], copies[rows])
        return x

    @torch.inference_mode()  # many small operations: a tenth of the time
    def _levels(self, images: Tensor, draws: Tensor) -> Tensor:
        """Augmented images in 0..255, uint8 or float32 [b, c, s, s]."""
        x = self._geometry(images, draws)
        if self._layers is not None:
            x = x if x.dtype == torch.uint8 else x.add_(0.5).clamp_(0, 255).to(torch.uint8)
            x = self._layers(x, draws[:, _LAYERS:])
        elif self._augment.three_augment:
            x = self._three(x.to(torch.float32), draws)
        return self._colour(x, draws)

    def _geometry(self, images: Tensor, draws: Tensor) -> Tensor:
        config, (height, width) = self._augment, images.shape[-2:]
        if not (self._crops or self._moves or config.flip > 0) and (height, width) == (self._size, self._size):
            return images
        # the antialiased crop is Pillow's: in whole pixels
        fused = config.interpolation == "bilinear" and max(height, width) <= self._size
        if self._crops:
            boxes = crop_boxes(draws[:, _CROP], config.crop_scale, config.crop_ratio, height, width, whole=not fused)
        else:
            boxes = torch.tensor([[0, 0, height, width]]).expand(len(images), 4)
        flip = draws[:, _FLIP] < config.flip if config.flip > 0 else None
        angle = shift = None
        if self._moves:
            angle = (2 * draws[:, _ROTATE] - 1) * math.radians(config.rotate)
            shift = (2 * draws[:, _SHIFT] - 1) * config.translate
        if fused:
            return resample(images, boxes, self._size, flip=flip, angle=angle, shift=shift)
        x = resized_crop(images, boxes.to(torch.int64), self._size, flip=flip, interpolation=config.interpolation)
        if self._moves:
            whole = torch.tensor([[0.0, 0.0, self._size, self._size]]).expand(len(images), 4)
            x = resample(x, whole, self._size, angle=angle, shift=shift, interpolation=config.interpolation)
        return x

    def _three(self, x: Tensor, draws: Tensor) -> Tensor:
        """One of grey, solarise and blur for each image, with equal probability (DeiT III, Touvron et al. 2022)."""
        choice = (3 * draws[:, _THREE]).to(torch.int64)
        x = _replaced(x, _rows(choice == 0), _grey)
        x = _replaced(x, _rows(choice == 1), colour.solarise)
        return self._blurred(x, _rows(choice == 2), draws[:, _THREE_SIGMA])

    def _colour(self, x: Tensor, draws: Tensor) -> Tensor:
        """x: [b, c, s, s] in 0..255. Returns it as it is, or float32 in 0..255."""
        config = self._augment
        if self._tones or self._tints:
            x = self._jitter(x.to(torch.float32), draws)
        if config.grey > 0:
            rows = _rows(draws[:, _GREY] < config.grey)
            x = _replaced(x.to(torch.float32), rows, _grey)
        if config.blur > 0:
            x = self._blurred(x.to(torch.float32), _rows(draws[:, _BLUR] < config.blur), draws[:, _SIGMA])
        if config.solarise > 0:
            rows = _rows(draws[:, _SOLARISE] < config.solarise)
            x = _replaced(x.to(torch.float32), rows, colour.solarise)
        return x

    def _jitter(self, x: Tensor, draws: Tensor) -> Tensor:
        config = self._augment
        left_out = draws[:, _JITTER, None] >= config.jitter if config.jitter < 1 else None

        def changes(places: slice, most: list[float]) -> Tensor:
            change = (2 * draws[:, places] - 1) * torch.tensor(most)
            return change if left_out is None else change.masked_fill(left_out, 0.0)

        if self._tones:
            factors = move(1 + changes(_COLOUR, [config.brightness, config.contrast]), x.device)[..., None, None, None]
            x = colour.brightness_contrast(x, factors[:, 0], factors[:, 1])
        if self._tints:
            tints = move(changes(slice(_SATURATION, _HUE + 1), [config.saturation, config.hue]), x.device)[
                ..., None, None
            ]
            if config.saturation > 0:
                x = colour.saturation(x, 1 + tints[:, 0, ..., None])
            if config.hue > 0:
                x = colour.hue(x, tints[:, 1])
        return x

    def _blurred(self, x: Tensor, rows: Tensor, draws: Tensor) -> Tensor:
        sigma = torch.lerp(*ends(self._augment.blur_sigma), draws)
        return _replaced(x, rows, lambda part: blur(part, move(sigma[rows], part.device)))


def _grey(x: Tensor) -> Tensor:
    return colour.grey(x).expand_as(x)


def _rows(chosen: Tensor) -> Tensor:
    """Row numbers. Made on the CPU: where the mask is on a GPU, their count would have to be waited for."""
    return chosen.nonzero()[:, 0]


def _replaced(x: Tensor, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """x with some rows changed, a new tensor. rows: int64 [n] on the CPU."""
    if not len(rows):
        return x
    where = move(rows, x.device)
    return x.index_copy(0, where, change(x.index_select(0, where)))
