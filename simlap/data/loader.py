"""Training batches whose every row is a function of (seed, epoch, position), and evaluation batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simlap import rng
from simlap.config.schema import Data
from simlap.data.augment import Augmenter, to_input
from simlap.data.pairs import PairKind, pair_labels
from simlap.data.splits import DataInfo, ImageSet
from simlap.errors import ConfigError, DataError

_STEPS_DRAWN = 32  # the draws of so many steps are made at once: the generator's cost is per call


@dataclass
class Batch:
    """One worker's rows of a global batch."""

    images: Tensor
    """float32 [b, c, s, s], augmented and normalised."""
    labels: Tensor
    """y, int64 [b]"""
    pair_labels: Tensor
    """p, int64 [b]"""
    rows: Tensor
    """int64 [b], row numbers in the global batch: rank, rank + W, ..."""
    global_size: int
    """B, rows of the global batch."""


class TrainLoader:
    """Batches of the training part, the images held as uint8 on the device.

    An epoch is a permutation of the images, each repeated `repeated_augmentation` times in a row, cut into global
    batches; the last partial one is dropped. Worker r of W takes the rows r::W of each. Draws belong to rows of the
    global batch, so neither W nor the step an epoch is entered at changes a row.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        data: Data,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        batch_size: int,
        pairs: PairKind,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"need 0 <= rank < world_size, got {rank} and {world_size}")
        if world_size > batch_size:
            raise ConfigError(
                f"more workers than rows of a batch (train.batch_size {batch_size})",
                key="resources.workers",
                value=world_size,
            )
        _check_batch(len(images), data.repeated_augmentation, batch_size)
        if pairs == "distinct" and num_classes < 2:
            raise DataError("needs at least two classes, the dataset has one", key="method.pairs", value=pairs)
        self.steps_per_epoch = len(images) * data.repeated_augmentation // batch_size
        self._device = torch.device(device)
        self._images = images.images.to(self._device)
        self._labels = images.labels.cpu()
        self._augmenter = Augmenter(data.augment, data.image_size, mean, std)
        self._repeats = data.repeated_augmentation
        self._num_classes, self._batch_size, self._pairs = num_classes, batch_size, pairs
        self._seed, self._rank, self._world_size = seed, rank, world_size

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on: the tail of `batches(epoch)`, bit for bit."""
        order = torch.randperm(len(self._labels), generator=rng.generator(self._seed, "order", epoch))
        key = rng.key(self._seed, "augment", epoch)
        rows = torch.arange(self._rank, self._batch_size, self._world_size)  # [b]
        for first in range(start_step, self.steps_per_epoch, _STEPS_DRAWN):
            steps = range(first, min(first + _STEPS_DRAWN, self.steps_per_epoch))
            positions = torch.tensor(steps)[:, None] * self._batch_size + rows  # [steps, b]
            samples, copies = order[positions // self._repeats], positions % self._repeats
            draws = self._augmenter.draw(key, samples.flatten(), copies.flatten()).unflatten(0, samples.shape)
            for i, step in enumerate(steps):
                labels, pairs = self._global_labels(order, epoch, step)
                images = self._images[samples[i].to(self._device)]
                yield Batch(
                    images=self._augmenter(images, key, samples[i], copies[i], draws[i]),
                    labels=labels[rows].to(self._device),
                    pair_labels=pairs[rows].to(self._device),
                    rows=rows.to(self._device),
                    global_size=self._batch_size,
                )

    def _global_labels(self, order: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """y and p of the whole global batch, int64 [B] each."""
        positions = torch.arange(step * self._batch_size, (step + 1) * self._batch_size)
        labels = self._labels[order[positions // self._repeats]]
        generator = rng.generator(self._seed, "pairs", epoch, step)
        return labels, pair_labels(self._pairs, labels, self._num_classes, generator)


def check_batch(info: DataInfo, data: Data, batch_size: int) -> None:
    """Raise DataError where an epoch would have no full batch."""
    _check_batch(info.num_train, data.repeated_augmentation, batch_size)


def _check_batch(num_train: int, repeats: int, batch_size: int) -> None:
    if batch_size > repeats * num_train:
        raise DataError(
            f"is larger than an epoch of {repeats * num_train} rows ({num_train} training images x "
            f"data.repeated_augmentation {repeats}); partial batches are dropped, so no step would be left",
            key="train.batch_size",
            value=batch_size,
        )


def eval_batches(
    images: ImageSet,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    batch_size: int = 512,
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in order, not augmented: (float32 [b, c, s, s] normalised, int64 [b]) on the device."""
    for first in range(0, len(images), batch_size):
        part = slice(first, first + batch_size)
        yield to_input(images.images[part].to(device), mean, std), images.labels[part].to(device)
