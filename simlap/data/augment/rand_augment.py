"""RandAugment (Cubuk et al. 2019) as in timm: notation, operations, magnitudes and signs of `timm.data.auto_augment`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simlap.data.augment import pillow
from simlap.data.augment.affine import affine
from simlap.data.augment.device import move
from simlap.data.augment.geometry import Interpolation
from simlap.errors import ConfigError

DRAWS = 4
"""Uniform draws of a layer: operation, whether it applies, magnitude, sign."""
_KEY = "data.augment.rand_augment"
_SECTIONS = ("m<int> magnitude", "n<int> layers", "p<float> probability", "mstd<float>", "mmax<int>", "inc<0 or 1>")
_DENOMINATOR = 10.0

Levels = NDArray[np.float64]


@dataclass(frozen=True)
class Policy:
    """What the notation says; defaults are timm's."""

    magnitude: int = 10
    layers: int = 2
    probability: float = 0.5
    deviation: float = 0.0
    """Standard deviation of the magnitude; infinite: uniform between 0 and `magnitude`."""
    highest: float = _DENOMINATOR
    """Upper end of the magnitude."""
    increasing: bool = False
    """Operations that grow stronger with the magnitude."""

    @property
    def operations(self) -> tuple[str, ...]:
        """timm's names, in timm's order."""
        grows = "Increasing" if self.increasing else ""
        names = ["AutoContrast", "Equalize", "Invert", "Rotate", "Posterize" + grows, "Solarize" + grows, "SolarizeAdd"]
        names += [name + grows for name in ("Color", "Contrast", "Brightness", "Sharpness")]
        return (*names, "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def parse_rand_augment(text: str) -> Policy:
    """`rand-m9-mstd0.5-inc1` and the like, read as timm does; what timm would skip or misread is an error.

    Raises:
        ConfigError: for an unknown section, one given twice, or a value that is no number of its kind.
    """
    head, *sections = text.split("-")
    if head != "rand":
        raise _wrong("must begin with 'rand'", text)
    kinds: dict[str, tuple[str, Callable[[str], Any]]] = {
        "m": ("magnitude", int),
        "n": ("layers", int),
        "p": ("probability", float),
        "mstd": ("deviation", _deviation),
        "mmax": ("highest", lambda value: int(value) or _DENOMINATOR),
        "inc": ("increasing", lambda value: bool(int(value))),
    }
    fields: dict[str, Any] = {}
    for section in sections:
        match = re.fullmatch(r"([a-z]+)(\d.*)", section)
        name, read = kinds.get(match[1] if match else "", ("", str))
        if not match or not name:
            raise _wrong(
                f"section {section!r} is unknown or has no number (timm's transform sets, t..., are not here)", text
            )
        if name in fields:
            raise _wrong(f"section {match[1]!r} is given twice", text)
        try:
            fields[name] = read(match[2])
        except ValueError:
            raise _wrong(f"section {section!r} has no number of its kind", text) from None
    return Policy(**fields)


def _deviation(value: str) -> float:
    return math.inf if float(value) > 100 else float(value)


def _wrong(message: str, text: str) -> ConfigError:
    return ConfigError(f"{message}; sections: {', '.join(_SECTIONS)}", key=_KEY, value=text)


@dataclass(frozen=True)
class Choice:
    """Rows of a batch that one operation changes, in one layer."""

    operation: str
    rows: NDArray[np.int64]
    amounts: Levels
    """One per row, what timm passes to the operation on one image (an angle, a factor, a threshold ...)."""


class RandAugment:
    """Applies a policy to a batch: in each layer, the rows that drew the same operation go through it together.

    Args:
        policy: what to do.
        mean: per channel, of pixels in [0, 1]; its grey levels fill what a geometric operation uncovers.
        interpolation: of the geometric operations.
    """

    def __init__(self, policy: Policy, mean: tuple[float, ...], interpolation: Interpolation) -> None:
        self.policy = policy
        fill = tuple(float(min(255, round(255 * value))) for value in mean)
        moved = partial(affine, fill=fill, interpolation=interpolation)
        self._kernels: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            **_KERNELS,
            "x": partial(moved, axes="x"),
            "y": partial(moved, axes="y"),
            "xy": partial(moved, axes="xy"),
        }

    @property
    def num_draws(self) -> int:
        return self.policy.layers * DRAWS

    def choose(self, draws: Tensor) -> list[list[Choice]]:
        """What happens in each layer. draws: uniform [b, num_draws] on the CPU."""
        policy, layers = self.policy, []
        for layer in draws.to(torch.float64).split(DRAWS, dim=1):
            picked, applied, magnitude, sign = layer.unbind(1)
            operation = (picked * len(policy.operations)).to(torch.int64).numpy()
            operation[(applied >= policy.probability).numpy()] = -1
            levels = self._levels(magnitude).numpy()
            signs = np.where(sign.numpy() > 0.5, -1.0, 1.0)
            choices = []
            for number, name in enumerate(policy.operations):
                rows = np.flatnonzero(operation == number)
                if len(rows):
                    choices.append(Choice(name, rows, _AMOUNTS[name](levels[rows], signs[rows])))
            layers.append(choices)
        return layers

    def _levels(self, draws: Tensor) -> Tensor:
        policy = self.policy
        if policy.deviation == math.inf:
            levels = draws * policy.magnitude
        else:
            levels = policy.magnitude + policy.deviation * torch.special.ndtri(draws)
        return levels.clamp(0, policy.highest)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """images: uint8 [b, c, s, s]; draws: uniform [b, num_draws] on the CPU. Returns new uint8 [b, c, s, s]."""
        images, size = images.clone(), images.shape[-1]
        for choices in self.choose(draws):
            if not choices:
                continue
            groups: dict[str, tuple[list[Any], list[Any]]] = {}
            for choice in choices:
                kernel, arguments = _arguments(choice, size)
                rows, values = groups.setdefault(kernel, ([], []))
                rows.append(choice.rows)
                values.append(arguments)
            sizes = [sum(map(len, rows)) for rows, _ in groups.values()]
            all_rows = torch.from_numpy(np.concatenate([part for rows, _ in groups.values() for part in rows]))
            all_values = torch.from_numpy(np.concatenate([part for _, values in groups.values() for part in values]))
            all_rows, all_values = move(all_rows, images.device), move(all_values.to(torch.float32), images.device)
            for kernel, rows, values in zip(groups, all_rows.split(sizes), all_values.split(sizes), strict=True):
                images.index_copy_(0, rows, self._kernels[kernel](images.index_select(0, rows), values))
        return images


_KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": pillow.auto_contrast,
    "Equalize": pillow.equalize,
    "Invert": pillow.invert,
    "Posterize": pillow.posterize,
    "Solarize": pillow.solarize,
    "SolarizeAdd": pillow.solarize_add,
    "Color": pillow.color,
    "Contrast": pillow.contrast,
    "Brightness": pillow.brightness,
    "Sharpness": pillow.sharpness,
}


def _none(levels: Levels, signs: Levels) -> Levels:
    return np.zeros_like(levels)


def _signed(levels: Levels, signs: Levels, *, most: float) -> Levels:
    return levels / _DENOMINATOR * most * signs


def _enhance(levels: Levels, signs: Levels) -> Levels:
    return levels / _DENOMINATOR * 1.8 + 0.1


def _enhance_increasing(levels: Levels, signs: Levels) -> Levels:
    return np.maximum(0.1, 1.0 + levels / _DENOMINATOR * 0.9 * signs)


def _bits(levels: Levels, signs: Levels) -> Levels:
    # timm's 0 bits are an error in Pillow 13
    return np.maximum(1, np.trunc(levels / _DENOMINATOR * 4))


def _bits_increasing(levels: Levels, signs: Levels) -> Levels:
    bits: Levels = 4 - np.trunc(levels / _DENOMINATOR * 4)
    return np.maximum(1, bits)


def _threshold(levels: Levels, signs: Levels) -> Levels:
    return np.minimum(256, np.trunc(levels / _DENOMINATOR * 256))


def _threshold_increasing(levels: Levels, signs: Levels) -> Levels:
    return 256 - _threshold(levels, signs)


def _added(levels: Levels, signs: Levels) -> Levels:
    return np.minimum(128, np.trunc(levels / _DENOMINATOR * 110))


# timm's LEVEL_TO_ARG, for many levels at once
_AMOUNTS: dict[str, Callable[[Levels, Levels], Levels]] = {
    "AutoContrast": _none,
    "Equalize": _none,
    "Invert": _none,
    "Rotate": partial(_signed, most=30.0),
    "Posterize": _bits,
    "PosterizeIncreasing": _bits_increasing,
    "Solarize": _threshold,
    "SolarizeIncreasing": _threshold_increasing,
    "SolarizeAdd": _added,
    "ShearX": partial(_signed, most=0.3),
    "ShearY": partial(_signed, most=0.3),
    "TranslateXRel": partial(_signed, most=0.45),
    "TranslateYRel": partial(_signed, most=0.45),
    **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), _enhance),
    **{f"{name}Increasing": _enhance_increasing for name in ("Color", "Contrast", "Brightness", "Sharpness")},
}


def _arguments(choice: Choice, size: int) -> tuple[str, Levels]:
    """The program that does an operation, and its arguments [n, 6]."""
    name, amounts = choice.operation.removesuffix("Increasing"), choice.amounts
    values = np.zeros((len(amounts), 6))
    if name not in _KERNELS:
        values[:, [0, 4]] = 1
    if name == "ShearX":
        values[:, 1] = amounts
        return "x", values
    if name == "TranslateXRel":
        values[:, 2] = amounts * size
        return "x", values
    if name == "ShearY":
        values[:, 3] = amounts
        return "y", values
    if name == "TranslateYRel":
        values[:, 5] = amounts * size
        return "y", values
    if name == "Rotate":
        cos, sin, middle = np.cos(np.radians(amounts)), np.sin(np.radians(amounts)), size / 2
        values[:, 0], values[:, 1], values[:, 2] = cos, -sin, middle - (cos - sin) * middle
        values[:, 3], values[:, 4], values[:, 5] = sin, cos, middle - (sin + cos) * middle
        return "xy", values
    values[:, 0] = 256 - 2 ** (8 - np.minimum(amounts, 8)) if name == "Posterize" else amounts
    return name, values
