"""Several steps' batches through the augmentation at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from simlap.data.augment.build import Augmentation

# A call has fixed costs: hundreds of small operations, each a launch on a GPU. Above so many bytes of images they are a small
# part of the whole, and more would only take memory: 1,024 and 4,096 images of 32 x 32.
_TOGETHER = {"cpu": 3 * 2**20, "cuda": 12 * 2**20}


class Drawn(NamedTuple):
    """What is augmented for one step; as the arguments of an `Augmentation`."""

    images: Tensor
    samples: Tensor
    copies: Tensor
    draws: Tensor


def augment_steps(
    augmenter: Augmentation, key: int, steps: Iterable[Drawn], *, together: bool = True
) -> Iterator[Tensor]:
    """The augmented images of each step, float32 [b, c, s, s], bit for bit those of a call for each.

    As many steps are taken ahead as go through `together`: some megabytes of images, at least one step. Without, one by one,
    each taken when it is asked for.
    """
    waiting: list[Drawn] = []
    for step in steps:
        waiting.append(step)
        most = _TOGETHER.get(step.images.device.type, 0) if together else 0
        if sum(each.images.nbytes for each in waiting) + step.images.nbytes > most:
            yield from _together(augmenter, key, waiting)
            waiting = []
    yield from _together(augmenter, key, waiting)


def _together(augmenter: Augmentation, key: int, steps: list[Drawn]) -> Iterator[Tensor]:
    if len(steps) < 2:
        yield from (augmenter(step.images, key, step.samples, step.copies, step.draws) for step in steps)
        return
    images, samples, copies, draws = (torch.cat(column) for column in zip(*steps, strict=True))
    yield from augmenter(images, key, samples, copies, draws).split([len(step.images) for step in steps])
