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
from torch import Tensor

from simlap.data.augment.geometry import Interpolation
from simlap.data.augment.layers import Choice, Levels, apply_layers
from simlap.errors import ConfigError

DRAWS = 4
"""Uniform draws of a layer: operation, whether it applies, magnitude, sign."""
_KEY = "data.augment.rand_augment"
_SECTIONS = ("m<int> magnitude", "n<int> layers", "p<float> probability", "mstd<float>", "mmax<int>", "inc<0 or 1>")
_DENOMINATOR = 10.0


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


class RandAugment:
    """Applies a policy to a batch, layer by layer.

    Args:
        policy: what to do.
        mean: per channel, of pixels in [0, 1]; its grey levels fill what a geometric operation uncovers.
        interpolation: of the geometric operations.
    """

    def __init__(self, policy: Policy, mean: tuple[float, ...], interpolation: Interpolation) -> None:
        self.policy = policy
        self._fill = tuple(float(min(255, round(255 * value))) for value in mean)
        self._interpolation = interpolation

    @property
    def num_draws(self) -> int:
        return self.policy.layers * DRAWS

    def choose(self, draws: Tensor) -> list[list[Choice]]:
        """What happens in each layer. draws: uniform [b, num_draws] on the CPU."""
        names, layers = self.policy.operations, []
        # [4, layers, b]: operation, whether it applies, magnitude, sign
        parts = draws.T.reshape(self.policy.layers, DRAWS, -1).transpose(0, 1).to(torch.float64)
        picked, applied, sign = parts[0].numpy(), parts[1].numpy(), np.where(parts[3].numpy() > 0.5, -1.0, 1.0)
        levels = self._levels(parts[2]).numpy()
        operations = np.where(applied < self.policy.probability, (picked * len(names)).astype(np.int64), len(names))
        # in order of their operation; rows without any come last
        orders = np.argsort(operations, axis=1, kind="stable")
        for operation, order, level, signs in zip(operations, orders, levels, sign, strict=True):
            ends = np.cumsum(np.bincount(operation, minlength=len(names))).tolist()
            layers.append(
                [
                    Choice(name, rows, _AMOUNTS[name](level[rows], signs[rows]))
                    for name, first, last in zip(names, [0, *ends], ends, strict=False)
                    if len(rows := order[first:last])
                ]
            )
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
        return self.apply(images, self.choose(draws))

    def apply(self, images: Tensor, layers: list[list[Choice]]) -> Tensor:
        """What `choose` gave, to uint8 [b, c, s, s]. Returns new images."""
        return apply_layers(images, layers, self._fill, self._interpolation)


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
