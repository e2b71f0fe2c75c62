"""Training batches whose every row is a function of (seed, epoch, step, position)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from simlap import rng
from simlap.config.schema import Data, PKSampling
from simlap.data import sampling
from simlap.data.augment import Drawn, MixPlan, apply_mix, augment_steps, build_augmenter, draw_mix
from simlap.data.augment.device import move
from simlap.data.batch import Batch, Mix, Pairs
from simlap.data.feed import DecodedAhead, Feed, HeldImages, Reading
from simlap.data.memory import check_device_memory
from simlap.data.pairs import PairKind, pair_labels
from simlap.data.source import ImageSet
from simlap.data.splits import DataInfo
from simlap.data.streamed import StreamedSet, check_shuffling
from simlap.errors import ConfigError, DataError

_STEPS_DRAWN = 32  # the draws of so many steps are made at once: the generator's cost is per call


class TrainLoader:
    """Batches of the training part, the images held as uint8 on the device, or decoded ahead where they are a `StreamedSet`.

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
        device: where the batches are made.

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
        self._streamed = isinstance(images, StreamedSet)
        self._by_class = sampling.by_class(self._labels, num_classes)
        sampling.check_sampling(data, batch_size, len(images), [len(part) for part in self._by_class])
        if pairs == "distinct" and num_classes < 2:
            raise DataError("needs at least two classes, the dataset has one", key="method.pairs", value=pairs)
        self.steps_per_epoch = len(images) * data.repeated_augmentation // batch_size
        self._device = torch.device(device)
        self._feed: Feed
        self._starts: Tensor | None = None
        if isinstance(images, StreamedSet):
            check_shuffling(images, data)
            self._starts = images.block_starts()
            self._feed, self._window = DecodedAhead(images, self._device), images.settings.window
        else:
            key = "data.stored_size" if data.stored_size else "data.image_size"
            check_device_memory(images.images, self._device, key=key)
            self._feed = HeldImages(images.images.to(self._device))
        self._augmenter = build_augmenter(data.augment, data.image_size, mean, std)
        self._data, self._views, self._repeats = data, data.augment.views, data.repeated_augmentation
        self._num_classes, self._batch_size, self._pairs = num_classes, batch_size, pairs
        self._seed, self._rank, self._world_size = seed, rank, world_size

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on: the tail of `batches(epoch)`, bit for bit. Raises DataError.

        Of streamed images some batches are decoded ahead; the threads end with the iterator.
        """
        draw, reading = self._draw(epoch, start_step)
        key = rng.key(self._seed, "augment", epoch)
        planned: deque[tuple[int, _Plan, Tensor]] = deque()

        def steps() -> Iterator[Tensor]:
            for step in self._planned(epoch, start_step, draw, key):
                planned.append(step)
                yield step[1].samples

        with closing(self._feed.images(steps(), reading)) as feed:
            made: deque[tuple[int, _Plan]] = deque()

            def drawn() -> Iterator[Drawn]:
                for images in feed:
                    step, plan, draws = planned.popleft()
                    made.append((step, plan))
                    yield Drawn(images, plan.samples, plan.copies, draws)

            # streamed images stay bounded by the window, and a broken one is met where it is due
            for images in augment_steps(self._augmenter, key, drawn(), together=not self._streamed):
                yield self._batch(epoch, *made.popleft(), images)

    def _planned(
        self, epoch: int, start_step: int, draw: sampling.Draw, key: int
    ) -> Iterator[tuple[int, _Plan, Tensor]]:
        """Each step with its plan and the draws of its augmentation."""
        for first in range(start_step, self.steps_per_epoch, _STEPS_DRAWN):
            steps = range(first, min(first + _STEPS_DRAWN, self.steps_per_epoch))
            plans = [self._plan(epoch, step, draw(step)) for step in steps]
            samples, copies = torch.cat([plan.samples for plan in plans]), torch.cat([plan.copies for plan in plans])
            draws = self._augmenter.draw(key, samples, copies).split([len(plan.samples) for plan in plans])
            yield from zip(steps, plans, draws, strict=True)

    def _draw(self, epoch: int, start_step: int) -> tuple[sampling.Draw, Reading | None]:
        """Which images each step of an epoch holds, and what is read for it where images lie in blocks."""
        count = len(self._labels)
        if isinstance(self._data.sampling, PKSampling):
            return sampling.pk(self._by_class, self._data.sampling, self._seed, epoch), None
        if self._starts is None:
            order = sampling.permutation(count, self._seed, epoch)
            return sampling.uniform(order, self._repeats, self._batch_size), None
        blocks = sampling.block_order(self._starts, count, self._window, self._seed, epoch)
        rows = torch.arange(start_step * self._batch_size, self.steps_per_epoch * self._batch_size)
        if not self._data.augment.mixes:  # partners may be any worker's
            rows = rows[rows % self._batch_size % self._world_size == self._rank]
        needed = torch.zeros(count, dtype=torch.bool)
        needed[blocks.images[rows // self._repeats]] = True
        reading = Reading(blocks, self._starts, needed, start_step, self._batch_size, self._repeats)
        return sampling.uniform(blocks.images, self._repeats, self._batch_size), reading

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
        distinct = _distinct_pairs(labels, pairs, own, self._views)
        columns = [labels[own], pairs[own], plan.rows, plan.chosen[own], *(vars(distinct).values() if distinct else ())]
        integers = move(torch.cat(columns), self._device).split([len(column) for column in columns])  # one transfer
        return Batch(
            images=images,
            labels=integers[0],
            pair_labels=integers[1],
            rows=integers[2],
            samples=integers[3],
            global_size=self._batch_size * self._views,
            offset=self._views * sum(len(range(r, self._batch_size, self._world_size)) for r in range(self._rank)),
            views=self._views,
            pairs=Pairs(*integers[4:]) if distinct else None,
            mix=mix,
        )


def _distinct_pairs(labels: Tensor, pair_labels: Tensor, own: Tensor, views: int) -> Pairs | None:
    """Of the rows that show the images `own`, or None where too few rows of the whole batch share a pair.

    Args:
        labels: int64 [B / views], of the global batch, and so are `pair_labels`: all workers come to the same decision.
    """
    everywhere = Pairs.of(labels, pair_labels)
    if 2 * len(everywhere.counts) > len(labels) * views:
        return None
    return Pairs.of(labels[own], pair_labels[own])


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
