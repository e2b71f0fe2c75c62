"""Images that are decoded when they are asked for: datasets that do not fit into memory."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

import torch
from torch import Tensor

from simlap.config.schema import Data, PKSampling, Streaming
from simlap.data import sampling
from simlap.data.channels import channel_histograms, statistics_of, with_channels
from simlap.data.decode import DecodeError, Mend, decode_into, in_threads
from simlap.data.memory import check_memory
from simlap.data.source import ImageSet, Part, Source, StoredImage
from simlap.data.substitutes import Substitutes
from simlap.errors import ConfigError, DataError

STATISTICS_IMAGES = 10_000
"""So many images, evenly spread, give the statistics of a streamed training part."""
_STATISTICS_RUN = 250  # neighbours, where reading one image means reading its row group
_LEAST_MIXED = 0.5


class StreamedSet(ImageSet):
    """Images of a source, not decoded."""

    def __init__(
        self,
        source: Source,
        part: Part,
        rows: Tensor,
        labels: Tensor,
        *,
        shape: tuple[int, int, int],
        data: Data,
        substitutes: Substitutes | None = None,
    ) -> None:
        """Args:
        source: which has them.
        part: of the source.
        rows: int64 [n], of the part.
        labels: int64 [n].
        shape: (c, s, s) that they are decoded to.
        data: the section they come from, with `streaming`.
        substitutes: for images that cannot be decoded; those of the whole set, where this is a part of it.
        """
        if len(rows) != len(labels):
            raise ValueError(f"{len(rows)} images but {len(labels)} labels")
        object.__setattr__(self, "labels", labels)  # frozen, as all sets of images are
        self.source, self.part, self.rows = source, part, rows
        self._shape, self._data, self.substitutes = shape, data, substitutes

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    @property
    def settings(self) -> Streaming:
        assert self._data.streaming is not None
        return self._data.streaming

    @property
    def images(self) -> Tensor:
        """All of them, decoded now. What goes through them once takes `batches`. Raises DataError, also where they do not fit."""
        key = "data.stored_size" if self._data.stored_size else "data.image_size"
        check_memory(len(self), max(self._shape[0], self.source.channels), self._shape[-1], key=key)
        squares = self.source.images(self.part, self.rows, self._shape[-1], self._mend)
        return with_channels(squares, self._shape[0])

    @property
    def _mend(self) -> Mend | None:
        return self.substitutes.mend if self.substitutes is not None else None

    def subset(self, rows: Tensor) -> StreamedSet:
        return StreamedSet(
            self.source, self.part, self.rows[rows], self.labels[rows], shape=self._shape, data=self._data,
            substitutes=self.substitutes,
        )  # fmt: skip

    def share(self, rank: int, size: int) -> StreamedSet:
        return self.subset(torch.arange(rank, len(self), size))

    def batches(self, batch_size: int) -> Generator[Tensor, None, None]:
        if not bool((self.rows.diff() > 0).all()):  # no single pass through the shards gives this order
            for rows in self.rows.split(batch_size):
                distinct, places = rows.unique(return_inverse=True)
                squares = self.source.images(self.part, distinct, self._shape[-1], self._mend)
                yield with_channels(squares, self._shape[0])[places]
            return
        held: list[Tensor] = []
        with closing(self._chunks()) as chunks:
            for chunk in chunks:
                held.append(chunk)
                while sum(map(len, held)) >= batch_size:
                    first, *rest = torch.cat(held).tensor_split([batch_size])
                    held = [part for part in rest if len(part)]
                    yield first
        if held:
            yield torch.cat(held)

    def _chunks(self) -> Generator[Tensor, None, None]:
        """In order, as many at a time as suits a thread."""

        def jobs() -> Iterator[tuple[Sequence[StoredImage], Sequence[int]]]:
            numbers: list[int] = self.rows.tolist()
            first = 0
            for images in self.source.stored(self.part, self.rows):
                yield images, numbers[first : first + len(images)]
                first += len(images)

        def decode(job: tuple[Sequence[StoredImage], Sequence[int]]) -> Tensor:
            images, numbers = job
            out = torch.empty((len(images), self.source.channels, *self._shape[1:]), dtype=torch.uint8)
            self.decode_into(out, images, range(len(images)), numbers)
            return with_channels(out, self._shape[0])

        yield from in_threads(decode, jobs(), threads=self.settings.workers)

    def decode_into(
        self, out: Tensor, images: Sequence[StoredImage], rows: Sequence[int], numbers: Sequence[int]
    ) -> None:
        """Some of the source's images into these rows of `out`, uint8 [m, its channels, s, s]. Raises DataError.

        Args:
            out: to be written to.
            images: as they are stored.
            rows: of `out`.
            numbers: rows of the source that the images are.
        """
        try:
            decode_into(out, images, rows, numbers, self._mend)
        except DecodeError as error:
            raise DataError(str(error), key=self.source.key(self.part)) from error

    def block_starts(self) -> Tensor | None:
        """The first image of each block that is read as a whole, int64 [k]; None where every image is read by itself."""
        breaks = self.source.breaks(self.part)
        if breaks is None:
            return None
        # rows are ascending; those between two breaks are neighbours
        return sampling.block_starts(torch.searchsorted(self.rows, breaks), len(self), self.settings.block)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, in [0, 1], of up to `STATISTICS_IMAGES` images: the same on all workers.

        Evenly spread, one by one or, where neighbours are read together, by 250 neighbours. Of all images where there are
        no more. Raises DataError.
        """
        run = 1 if self.source.breaks(self.part) is None else _STATISTICS_RUN
        chosen = torch.arange(len(self))
        if len(self) > STATISTICS_IMAGES:
            runs = STATISTICS_IMAGES // run
            firsts = torch.arange(runs) * (len(self) - run) // (runs - 1)
            chosen = (firsts[:, None] + torch.arange(run)).flatten().unique()
        histograms = torch.zeros(self._shape[0], 256, dtype=torch.int64)
        for images in self.subset(chosen).batches(1024):
            histograms += channel_histograms(images)
        return statistics_of(histograms)


def check_shuffling(images: StreamedSet, data: Data) -> None:
    """Raise where images that are read by blocks cannot be shuffled well enough.

    Args:
        images: the training part.
        data: says how they are drawn.

    Raises:
        ConfigError: PK sampling takes images from everywhere.
        DataError: the images lie sorted by class, so that batches would hold few classes.
    """
    starts = images.block_starts()
    if starts is None:
        return
    if isinstance(data.sampling, PKSampling):
        raise ConfigError(
            "takes the images of a batch from everywhere, and Parquet is read by row groups; use an image folder "
            "(data.source: folder), another sampling, or no data.streaming",
            key="data.sampling.kind",
            value=data.sampling.kind,
            choices=["uniform"],
        )
    window, sizes = images.settings.window, images.labels.bincount()
    order = sampling.block_order(starts, len(images), window, seed=0, epoch=0)
    found, expected = 0.0, 0.0
    for run in order.images.split(order.runs.diff().tolist()):
        found += len(images.labels[run].unique())
        # of a class with so many images, the chance that a run of independent draws holds one
        expected += float((1 - (1 - sizes / len(images)) ** len(run)).sum())
    if found < _LEAST_MIXED * expected:
        runs = len(order.runs) - 1
        raise DataError(
            f"{window} blocks of neighbouring images that are shuffled together hold {found / runs:.0f} classes on average, "
            f"{expected / runs:.0f} if images lay in random order: {images.source.where(images.part)} is sorted by class. "
            "Write it in random order (simlap data --to FOLDER --shuffle), raise data.streaming.window, or stream image files",
            key="data.streaming.window",
            value=window,
        )
