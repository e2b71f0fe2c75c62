"""From the `data.augment` section to the object that augments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from simlap.config.schema import Augment
from simlap.data.augment.batched import Augmenter
from simlap.data.augment.reference import TimmAugmenter


class Augmentation(Protocol):
    """uint8 images to network input; every row a function of (key, sample, copy) and its image alone."""

    def draw(self, key: int, samples: Tensor, copies: Tensor) -> Tensor:
        """The draws of rows, float32 [b, n], to be handed to a call; those of many rows may be made at once."""

    def __call__(
        self, images: Tensor, key: int, samples: Tensor, copies: Tensor, draws: Tensor | None = None
    ) -> Tensor:
        """uint8 [b, c, h, w] to float32 [b, c, s, s], normalised, on the same device."""


def build_augmenter(augment: Augment, image_size: int, mean: Sequence[float], std: Sequence[float]) -> Augmentation:
    """The augmentation of a training set.

    Args:
        augment: `data.augment`.
        image_size: side of the result.
        mean, std: per channel, of pixels in [0, 1].

    Raises:
        ConfigError: for a `rand_augment` that cannot be read, or a field that `pipeline: timm` does not have.
    """
    kind = TimmAugmenter if augment.pipeline == "timm" else Augmenter
    return kind(augment, image_size, mean, std)
