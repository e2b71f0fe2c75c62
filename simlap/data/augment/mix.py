"""Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019), one draw for a whole batch, as `timm.data.Mixup`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from simlap.config.schema import Augment

_SWITCH = 0.5


class MixPlan(NamedTuple):
    """How the rows of a global batch are mixed."""

    partners: Tensor
    """int64 [B], the row of the global batch that each row is mixed with."""
    weight: float
    """Share of the row's own image; cutmix: after the box was cut to the image."""
    box: tuple[int, int, int, int] | None
    """Cutmix: the partner's part in pixels: top, left, height, width. None: mixup."""


def draw_mix(augment: Augment, image_size: int, num_rows: int, generator: torch.Generator) -> MixPlan | None:
    """Draw the plan of one global batch; None where it is not mixed.

    Args:
        augment: its `mixup`, `cutmix` and `mix_probability`. With both alphas, half of the mixed batches have either.
        image_size: side of the images.
        num_rows: B, rows of the global batch. Row i has row B - 1 - i as its partner.
        generator: on the CPU, keyed by the step.
    """
    if not augment.mixes:
        return None
    # numpy has a beta distribution that takes a generator
    draws = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    if draws.random() >= augment.mix_probability:
        return None
    both = augment.mixup > 0 and augment.cutmix > 0
    cuts = draws.random() < _SWITCH if both else augment.cutmix > 0
    alpha = augment.cutmix if cuts else augment.mixup
    weight = float(draws.beta(alpha, alpha))
    partners = torch.arange(num_rows - 1, -1, -1)
    if not cuts:
        return MixPlan(partners, weight, None)
    y, x = (int(v) for v in draws.integers(image_size, size=2))
    box = _box(y, x, int(image_size * math.sqrt(1 - weight)), image_size)
    return MixPlan(partners, 1 - box[2] * box[3] / image_size**2, box)


def apply_mix(images: Tensor, partner_images: Tensor, plan: MixPlan) -> Tensor:
    """Mix rows with their partners, which stay as they are.

    Args:
        images: [b, c, s, s], some rows of the global batch.
        partner_images: [b, c, s, s], the images of `plan.partners[rows]`, augmented as in their own rows.

    Returns:
        [b, c, s, s], a new tensor.
    """
    if plan.box is None:
        return torch.add(images * plan.weight, partner_images * (1 - plan.weight))
    top, left, height, width = plan.box
    part = (..., slice(top, top + height), slice(left, left + width))
    mixed = images.clone()
    mixed[part] = partner_images[part]
    return mixed


def _box(y: int, x: int, side: int, size: int) -> tuple[int, int, int, int]:
    """A square around (y, x), cut to the image: timm's `rand_bbox`."""
    top, left = max(y - side // 2, 0), max(x - side // 2, 0)
    bottom, right = min(y + (side + 1) // 2, size), min(x + (side + 1) // 2, size)
    return top, left, bottom - top, right - left
