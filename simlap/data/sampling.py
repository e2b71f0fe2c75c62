"""Which images a batch holds. Every draw is of the *global* batch and keyed, so the number of workers changes nothing.

Drawing on each worker for itself is a fault of the authors' code: its workers' draws differ, and a class appears in a batch with
other than K images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simlap import rng
from simlap.config.schema import Data, PKSampling
from simlap.errors import DataError

Draw = Callable[[int], Tensor]
"""From a step of an epoch to the images of its global batch: int64 [B before views], numbers in the training part."""


@dataclass(frozen=True)
class BlockOrder:
    """An epoch's order that keeps to blocks of neighbouring images: read block by block, mixed run by run."""

    images: Tensor
    """int64 [n], a permutation."""
    blocks: Tensor
    """int64 [k], the numbers of the blocks, run after run."""
    runs: Tensor
    """int64 [r + 1], the places in `images` where runs begin, and n: a run's blocks are shuffled together."""


def permutation(num_images: int, seed: int, epoch: int) -> Tensor:
    """int64 [n]: an epoch's order, where every image can be reached alike."""
    return torch.randperm(num_images, generator=rng.generator(seed, "order", epoch))


def block_order(starts: Tensor, num_images: int, window: int, seed: int, epoch: int) -> BlockOrder:
    """An epoch's order, where images are read by blocks.

    Blocks come in a random order, `window` of them make a run, and the images of a run are shuffled together. One run of all
    blocks is `permutation`.

    Args:
        starts: int64 [k], the first image of each block; ascending from 0.
        num_images: n.
        window: blocks in a run; the last run may have less.
    """
    sizes = torch.diff(starts, append=torch.tensor([num_images]))
    blocks = torch.randperm(len(starts), generator=rng.generator(seed, "blocks", epoch))
    generator = rng.generator(seed, "order", epoch)
    runs, images = [part.sort().values for part in blocks.split(window)], []
    for run in runs:
        inside = torch.cat([starts[block] + torch.arange(sizes[block].item()) for block in run])
        images.append(inside[torch.randperm(len(inside), generator=generator)])
    ends = torch.tensor([0, *(len(part) for part in images)]).cumsum(0)
    return BlockOrder(torch.cat(images), torch.cat(runs), ends)


def block_starts(breaks: Tensor, num_images: int, block: int) -> Tensor:
    """The first image of each block, where a block is at least `block` neighbours, but for the last one: int64 [k].

    Args:
        breaks: int64, images at which reading can begin without reading what lies before; ascending.
        num_images: n.
    """
    starts = [0]
    for place in breaks.tolist():
        if place - starts[-1] >= block and place < num_images:
            starts.append(place)
    return torch.tensor(starts)


def uniform(order: Tensor, repeats: int, batch_size: int) -> Draw:
    """Images in this order (int64 [n]), each `repeats` times in a row, cut into batches."""
    rows = torch.arange(batch_size)

    def draw(step: int) -> Tensor:
        return order[(step * batch_size + rows) // repeats]

    return draw


def by_class(labels: Tensor, num_classes: int) -> tuple[Tensor, ...]:
    """The images of each class in ascending order. labels: int64 [n]."""
    sizes: list[int] = torch.bincount(labels, minlength=num_classes).tolist()
    return torch.split(torch.argsort(labels, stable=True), sizes)


def pk(images: Sequence[Tensor], sampling: PKSampling, seed: int, epoch: int) -> Draw:
    """P classes without replacement, and K images of each without replacement: [P, K] flattened.

    Args:
        images: `by_class(...)`, at least P classes with at least K images each.
    """

    def draw(step: int) -> Tensor:
        generator = rng.generator(seed, "pk", epoch, step)
        classes = torch.randperm(len(images), generator=generator)[: sampling.classes]
        chosen = [images[c][torch.randperm(len(images[c]), generator=generator)[: sampling.images]] for c in classes]
        return torch.cat(chosen)

    return draw


def check_sampling(
    data: Data, batch_size: int, num_train: int, class_sizes: Sequence[int], class_names: Sequence[str] | None = None
) -> None:
    """Raise DataError where a batch cannot be drawn, or an epoch would have no full one.

    Args:
        batch_size: images in a global batch, before views.
        num_train: images in the training part.
        class_sizes: images of each class in it, for PK sampling.
        class_names: of the classes, for the message (default: their labels).
    """
    sampling, repeats = data.sampling, data.repeated_augmentation
    if isinstance(sampling, PKSampling):
        if sampling.classes > len(class_sizes):
            raise DataError(
                f"a batch cannot hold more classes than the dataset has ({len(class_sizes)})",
                key="data.sampling.classes",
                value=sampling.classes,
                choices=[f"2 to {len(class_sizes)}"],
            )
        smallest = min(class_sizes)
        if sampling.images > smallest:
            label = list(class_sizes).index(smallest)
            raise DataError(
                "a batch cannot hold more images of a class than the training part has: "
                f"{smallest} of class {repr(class_names[label]) if class_names else label}",
                key="data.sampling.images",
                value=sampling.images,
                choices=[f"1 to {smallest}"] if smallest else (),
            )
    if batch_size > repeats * num_train:
        raise DataError(
            f"is larger than an epoch of {repeats * num_train} rows ({num_train} training images x "
            f"data.repeated_augmentation {repeats}); partial batches are dropped, so no step would be left",
            key="train.batch_size",
            value=batch_size,
        )
