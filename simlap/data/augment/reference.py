"""timm's own training transform, image by image on Pillow images: the reference that the batched one is measured by."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simlap import rng
from simlap.config.schema import Augment
from simlap.data.augment.filters import RADIUS
from simlap.errors import ConfigError

# what timm's transform has no place for, and the value that leaves it out
_ABSENT = {"rotate": 0.0, "translate": 0.0, "three_augment": False, "solarise": 0.0}
_JITTER = ("brightness", "contrast", "saturation", "hue")
_SIGMA = (0.1, 2.0)


class TimmAugmenter:
    """The interface of `Augmenter` around `timm.data.create_transform`.

    Each row is transformed under generators of Python, numpy and torch that are seeded by (key, sample, copy), so it
    depends on them alone; the program's generators are as before after each call. Not for several threads at once. Images
    of one channel go through as Pillow's mode L: everything works, and changes of colour leave them as they are.

    RandAugment's posterize keeps at least one bit, since Pillow 13 refuses timm's zero.

    Raises:
        ConfigError: for a field that timm's transform does not have, or that it would ignore.
    """

    def __init__(self, augment: Augment, image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        _check(augment, image_size)
        self._transform = _build(augment, image_size, mean, std)

    def draw(self, key: int, samples: Tensor, copies: Tensor) -> Tensor:
        """No draws: float32 [b, 0]. timm makes its own."""
        return torch.empty(len(samples), 0)

    def __call__(
        self, images: Tensor, key: int, samples: Tensor, copies: Tensor, draws: Tensor | None = None
    ) -> Tensor:
        """uint8 [b, c, h, w] to float32 [b, c, s, s], normalised, on the device of `images`. Arguments as `Augmenter`'s."""
        rows = images.cpu().permute(0, 2, 3, 1).numpy()
        rows = rows[..., 0] if rows.shape[3] == 1 else rows
        results = []
        with _generators_restored():
            for row, sample, copy in zip(rows, samples.tolist(), copies.tolist(), strict=True):
                _seed(rng.key(key, sample, copy))
                results.append(self._transform(Image.fromarray(row)))
        return torch.stack(results).to(images.device)


def _check(augment: Augment, image_size: int) -> None:
    for name, off in _ABSENT.items():
        if (value := getattr(augment, name)) != off:
            raise _wrong(
                name, value, "timm's training transform does not have it; use pipeline: batched, or leave it out"
            )
    policy = augment.rand_augment or ""
    if policy and not policy.startswith("rand"):
        raise _wrong("rand_augment", policy, "must begin with 'rand'")
    for name in _JITTER:
        if (value := getattr(augment, name)) > 0 and policy and "3a" not in policy:
            raise _wrong(
                name, value, "timm leaves it out where RandAugment is on; use pipeline: batched, or leave it out"
            )
    if augment.blur > 0 and augment.blur_sigma != _SIGMA:
        raise _wrong("blur_sigma", augment.blur_sigma, f"timm's is {_SIGMA}; use pipeline: batched for another")
    if augment.blur > 0 and image_size <= RADIUS:
        raise _wrong(
            "blur", augment.blur, f"timm's kernel needs images of more than {RADIUS} pixels; this is {image_size}"
        )


def _build(
    augment: Augment, image_size: int, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image], Tensor]:
    from timm.data import auto_augment
    from timm.data.transforms_factory import create_transform

    jitter = tuple(getattr(augment, name) for name in _JITTER)
    options: dict[str, Any] = {
        "scale": augment.crop_scale,
        "ratio": augment.crop_ratio,
        "interpolation": augment.interpolation,
        "hflip": augment.flip,
        "color_jitter": jitter if any(jitter) else None,
        "color_jitter_prob": augment.jitter if augment.jitter < 1 else None,
        "grayscale_prob": augment.grey,
        "gaussian_blur_prob": augment.blur,
        "auto_augment": augment.rand_augment,
        "re_prob": augment.erase,
        "re_mode": "pixel",
    }
    try:
        transform = create_transform(
            image_size, is_training=True, mean=tuple(mean), std=tuple(std), **options
        )  # fmt: skip
    except (AssertionError, ValueError) as error:
        if augment.rand_augment is None:
            raise
        raise _wrong("rand_augment", augment.rand_augment, f"timm cannot read it ({error})") from None
    for policy in transform.transforms:
        if isinstance(policy, auto_augment.RandAugment):
            for operation in policy.ops:
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize
    return cast(Callable[[Image.Image], Tensor], transform)


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    from timm.data.auto_augment import posterize

    return cast(Image.Image, posterize(image, max(1, bits)))


# timm draws from the global generators, numpy's legacy one among them (NPY002)
@contextmanager
def _generators_restored() -> Iterator[None]:
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torchs)


def _seed(key: int) -> None:
    random.seed(key)
    np.random.seed([key & 0xFFFFFFFF, key >> 32])  # noqa: NPY002
    # `torch.manual_seed` would seed the GPUs' generators too
    torch.default_generator.manual_seed(key)


def _wrong(name: str, value: object, message: str) -> ConfigError:
    return ConfigError(message, key=f"data.augment.{name}", value=value)
