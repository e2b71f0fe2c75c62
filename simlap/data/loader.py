"""Training batches whose every row is a function of (seed, epoch, step, position)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from simlap import rng
from simlap.config.schema import Data, PKSampling
from simlap.data import sampling
from simlap.data.augment import MixPlan, apply_mix, build_augmenter, draw_mix
from simlap.data.augment.device import move
from simlap.data.batch import Batch, Mix
from simlap.data.memory import check_device_memory
from simlap.data.pairs import PairKind, pair_labels
from simlap.data.source import ImageSet
from simlap.data.splits import DataInfo
from simlap.errors import ConfigError, DataError

_STEPS_DRAWN = 32  # the draws of so many steps are made at once: the generator's cost is per call


class TrainLoader:
    """Batches of the training part, the images held as uint8 on the device.

    A global batch holds `batch_size` images (see `simlap.data.sampling`), each in `data.augment.views` views: row number =
    position of the image x views + view. An epoch has as many batches as fit into the training part once, times
    `repeated_augmentation`; the last partial one is dropped. Worker r of W takes the images r::W of each, with all views.
    Draws belong to rows of the global batch, so neither W nor the step an epoch is entered at changes a row.

    Args:
        images: the training part.
        data: how to sample and augment.
        mean, std: per channel, of pixels in [0, 1].
        num_classes: C.
        batch_size: images in the global batch, before views.
        pairs: how pair labels are drawn; `identical` for methods without.
        seed: the experiment's.
        rank, world_size: which worker of how many.
        device: where the images lie and the batches are made.

    Raises:
        DataError, ConfigError: no such batch can be drawn from these images, or not by so many workers; the images do not fit
            on the device.
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
        self._labels = images.labels.cpu()
        self._by_class = sampling.by_class(self._labels, num_classes)
        sampling.check_sampling(data, batch_size, len(images), [len(part) for part in self._by_class])
        if pairs == "distinct" and num_classes < 2:
            raise DataError("needs at least two classes, the dataset has one", key="method.pairs", value=pairs)
        self.steps_per_epoch = len(images) * data.repeated_augmentation // batch_size
        self._device = torch.device(device)
        key = "data.stored_size" if data.stored_size else "data.image_size"
        check_device_memory(images.images, self._device, key=key)
        self._images = images.images.to(self._device)
        self._augmenter = build_augmenter(data.augment, data.image_size, mean, std)
        self._data, self._views, self._repeats = data, data.augment.views, data.repeated_augmentation
        self._num_classes, self._batch_size, self._pairs = num_classes, batch_size, pairs
        self._seed, self._rank, self._world_size = seed, rank, world_size

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on: the tail of `batches(epoch)`, bit for bit."""
        draw = self._draw(epoch)
        key = rng.key(self._seed, "augment", epoch)
        for first in range(start_step, self.steps_per_epoch, _STEPS_DRAWN):
            steps = range(first, min(first + _STEPS_DRAWN, self.steps_per_epoch))
            plans = [self._plan(epoch, step, draw(step)) for step in steps]
            samples, copies = torch.cat([plan.samples for plan in plans]), torch.cat([plan.copies for plan in plans])
            draws = self._augmenter.draw(key, samples, copies).split([len(plan.samples) for plan in plans])
            for step, plan, drawn in zip(steps, plans, draws, strict=True):
                images = self._images[move(plan.samples, self._device)]
                yield self._batch(epoch, step, plan, self._augmenter(images, key, plan.samples, plan.copies, drawn))

    def _draw(self, epoch: int) -> sampling.Draw:
        if isinstance(self._data.sampling, PKSampling):
            return sampling.pk(self._by_class, self._data.sampling, self._seed, epoch)
        return sampling.uniform(len(self._labels), self._repeats, self._batch_size, self._seed, epoch)

    def _plan(self, epoch: int, step: int, chosen: Tensor) -> _Plan:
        """What this worker augments for a step. chosen: int64 [B / views], the images of the global batch."""
        positions = torch.arange(self._rank, self._batch_size, self._world_size)
        rows = (positions[:, None] * self._views + torch.arange(self._views)).flatten()  # [b]
        mix = partners = None
        augmented = rows
        if self._data.augment.mixes:
            generator = rng.generator(self._seed, "mix", epoch, step)
            mix = draw_mix(self._data.augment, self._data.image_size, self._batch_size * self._views, generator)
        if mix is not None:
            wanted = mix.partners[rows]
            # own rows first; a partner that is another worker's row is augmented here as well, exactly as there
            augmented = torch.cat([rows, wanted[~torch.isin(wanted, rows)].unique()])
            place = torch.empty(self._batch_size * self._views, dtype=torch.int64)
            place[augmented] = torch.arange(len(augmented))
            partners = place[wanted]
        images, views = augmented // self._views, augmented % self._views
        # PK sampling may draw an image in several steps of an epoch: each is another copy
        repeats = (
            step if isinstance(self._data.sampling, PKSampling) else (step * self._batch_size + images) % self._repeats
        )
        return _Plan(chosen, rows, chosen[images], repeats * self._views + views, mix, partners)

    def _batch(self, epoch: int, step: int, plan: _Plan, images: Tensor) -> Batch:
        """The batch of a plan. images: float32 [a, c, s, s], its augmented rows."""
        labels = self._labels[plan.chosen]  # of the whole batch, before views
        pairs = pair_labels(self._pairs, labels, self._num_classes, rng.generator(self._seed, "pairs", epoch, step))
        own = plan.rows // self._views  # [b]
        mix = None
        if plan.mix is not None and plan.partners is not None:
            weight = torch.full(own.shape, plan.mix.weight, dtype=torch.float32, device=self._device)
            mix = Mix(move(labels[plan.mix.partners[plan.rows] // self._views], self._device), weight)
            images = apply_mix(images[: len(own)], images[move(plan.partners, self._device)], plan.mix)
        # one transfer
        integers = move(torch.stack([labels[own], pairs[own], plan.rows, plan.chosen[own]]), self._device)  # [4, b]
        return Batch(
            images=images,
            labels=integers[0],
            pair_labels=integers[1],
            rows=integers[2],
            samples=integers[3],
            global_size=self._batch_size * self._views,
            offset=self._views * sum(len(range(r, self._batch_size, self._world_size)) for r in range(self._rank)),
            views=self._views,
            mix=mix,
        )


class _Plan(NamedTuple):
    """A worker's part of one step. a = b rows of its own, then partners that are other workers' rows."""

    chosen: Tensor
    """int64 [B / views], image numbers of the global batch."""
    rows: Tensor
    """int64 [b], row numbers in the global batch."""
    samples: Tensor
    """int64 [a], image number of each augmented row."""
    copies: Tensor
    """int64 [a], which copy of its image an augmented row is."""
    mix: MixPlan | None
    partners: Tensor | None
    """int64 [b], where among the a rows each row's partner is."""


def check_batch(info: DataInfo, data: Data, batch_size: int) -> None:
    """Raise DataError where a batch cannot be drawn from the dataset, or an epoch would have no full one."""
    sampling.check_sampling(data, batch_size, info.num_train, info.class_sizes, info.class_names)
