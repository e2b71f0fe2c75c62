"""Images as a network sees them at evaluation: in order, not augmented."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from simlap.data.augment import to_input
from simlap.data.augment.device import move
from simlap.data.source import ImageSet
from simlap.data.splits import Splits


def eval_batches(
    images: ImageSet, splits: Splits, device: torch.device | str = "cpu", batch_size: int = 512
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in order: (float32 [b, c, s, s] normalised, int64 [b]) on the device.

    Args:
        images: one of the parts of `splits`, or some of its images.
        splits: says sizes, kernel, mean and standard deviation.
        device: where the images are resized.
        batch_size: images to a batch; the last one is smaller.

    Raises:
        DataError: a streamed image that cannot be read or decoded.
    """
    first, device = 0, torch.device(device)
    with closing(images.batches(batch_size)) as parts:
        for part in parts:
            view = eval_view(move(part, device), splits.image_size, splits.eval_size, splits.interpolation)
            yield to_input(view, splits.mean, splits.std), move(images.labels[first : first + len(part)], device)
            first += len(part)


def eval_view(
    images: Tensor, image_size: int, eval_size: int, interpolation: Literal["bilinear", "bicubic"] = "bilinear"
) -> Tensor:
    """Resize to `eval_size`, then crop the centre: timm's evaluation transform, on tensors.

    Pillow's antialiased kernels, and as there values are rounded and clipped to 0..255 after each of the two passes.

    Args:
        images: uint8 [n, c, t, t].
        image_size: s, side of the result.
        eval_size: side before the crop, at least `image_size`.
        interpolation: of the resize.

    Returns:
        uint8 [n, c, s, s]; `images` itself where it has that size and `eval_size` is the same.
    """
    for size in ((images.shape[-2], eval_size), (eval_size, eval_size)):  # columns first, as Pillow does
        if images.shape[-2:] != size:
            resized = F.interpolate(images.float(), size, mode=interpolation, antialias=True)
            images = resized.add_(0.5).clamp_(0, 255).to(torch.uint8)  # half is rounded up, and bicubic overshoots
    at = round((eval_size - image_size) / 2)
    return images[..., at : at + image_size, at : at + image_size]
