"""Where a training loader's images come from: a tensor on the device, or files that are decoded ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from simlap.data.augment.device import move
from simlap.data.channels import with_channels
from simlap.data.sampling import BlockOrder
from simlap.data.source import StoredImage
from simlap.data.streamed import StreamedSet


class Reading(NamedTuple):
    """What an epoch reads of images that lie in blocks, and when."""

    order: BlockOrder
    starts: Tensor
    """int64 [k], the first image of each block."""
    needed: Tensor
    """bool [n], which images this worker needs from the first step on."""
    first: int
    """Step that is entered at."""
    batch_size: int
    repeats: int

    def over(self, step: int) -> int:
        """How many images of the order no step from this one on needs."""
        return step * self.batch_size // self.repeats

    def reached(self, step: int) -> int:
        """How many images of the order the steps up to this one need."""
        return ((step + 1) * self.batch_size - 1) // self.repeats + 1


class Feed(Protocol):
    """Gives the images of steps."""

    def images(self, steps: Iterable[Tensor], reading: Reading | None) -> Generator[Tensor, None, None]:
        """Uint8 [b, c, s, s] on the device for every step's image numbers (int64 [b]). To be closed. Raises DataError.

        Args:
            steps: may be asked for some steps ahead.
            reading: where images are read by blocks.
        """


class HeldImages:
    """Decoded images on the device."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def images(self, steps: Iterable[Tensor], reading: Reading | None) -> Generator[Tensor, None, None]:
        for samples in steps:
            # `index` would copy byte by byte: ten times as long
            yield self._images.index_select(0, move(samples, self._images.device))


class _Decoding(NamedTuple):
    """One step under way."""

    out: Tensor
    """uint8 [distinct images, c, s, s]"""
    places: Tensor
    """int64 [b], rows of `out`"""
    jobs: list[Future[None]]


class DecodedAhead:
    """Images that threads decode while the steps before are computed with."""

    def __init__(self, images: StreamedSet, device: torch.device) -> None:
        self._set, self._device, self._settings = images, device, images.settings

    def images(self, steps: Iterable[Tensor], reading: Reading | None) -> Generator[Tensor, None, None]:
        pool = ThreadPoolExecutor(self._settings.workers, thread_name_prefix="simlap-decode")
        blocks = None if reading is None else _Blocks(self._set, reading, pool)
        pending: deque[_Decoding] = deque()
        try:
            for samples in steps:
                pending.append(self._start(samples, blocks, pool))
                if len(pending) > self._settings.prefetch:
                    yield self._finish(pending.popleft(), blocks)
            while pending:
                yield self._finish(pending.popleft(), blocks)
        finally:
            # whatever ends it, an error or a loop that was left: no thread outlives it
            pool.shutdown(cancel_futures=True)

    def _start(self, samples: Tensor, blocks: _Blocks | None, pool: ThreadPoolExecutor) -> _Decoding:
        distinct, places = samples.unique(return_inverse=True)
        shape = (len(distinct), self._set.source.channels, *self._set.shape[1:])
        out = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        if blocks is not None:
            blocks.read_ahead()
        rows = torch.arange(len(distinct)).tensor_split(min(self._settings.workers, len(distinct)))
        jobs = [pool.submit(self._decode, out, part, distinct[part], blocks) for part in rows]
        return _Decoding(out, places, jobs)

    def _decode(self, out: Tensor, rows: Tensor, samples: Tensor, blocks: _Blocks | None) -> None:
        if blocks is None:
            chunks = self._set.source.stored(self._set.part, self._set.rows[samples])
            images = [stored for chunk in chunks for stored in chunk]
        else:
            images = blocks.stored(samples)
        self._set.decode_into(out, images, rows.tolist(), self._set.rows[samples].tolist())

    def _finish(self, step: _Decoding, blocks: _Blocks | None) -> Tensor:
        for job in step.jobs:
            job.result()
        if blocks is not None:
            blocks.release()
        # the caching allocator of pinned memory waits for the copy before it gives the buffer away again
        images = step.out.to(self._device, non_blocking=True)
        return with_channels(images, self._set.shape[0])[move(step.places, self._device)]


class _Blocks:
    """Encoded images, read ahead of the steps: at most those of a window and one block more, unless steps need more at once.

    Used by the training thread, but for `stored`. Reading and decoding share a pool that starts its jobs in the order they are
    given: a job that waits for a block waits for one that has been started.
    """

    def __init__(self, images: StreamedSet, reading: Reading, pool: ThreadPoolExecutor) -> None:
        self._set, self._pool, self._needed = images, pool, reading.needed
        self._reading, self._order, self._starts = reading, reading.order, reading.starts
        self._sizes = torch.diff(reading.starts, append=torch.tensor([len(images)])).tolist()
        runs: list[int] = reading.order.runs.diff().tolist()
        self._limit = max(runs) + max(self._sizes)
        self._read: dict[int, Future[dict[int, StoredImage]]] = {}
        self._next = self._asked = 0  # blocks and images of the order that reading has been asked for
        self._planned = self._finished = reading.first  # steps
        self._released = reading.over(reading.first)  # images of the order

    def read_ahead(self) -> None:
        """Ask for what the next step needs, and for what fits into memory beside what is there."""
        # with an image comes all of its run
        run = torch.searchsorted(self._order.runs, self._reading.reached(self._planned))
        wanted = int(self._order.runs[run])
        self._planned += 1
        while self._next < len(self._sizes):
            block = int(self._order.blocks[self._next])
            if self._asked >= wanted and self._asked + self._sizes[block] - self._released > self._limit:
                break
            first = int(self._starts[block])
            rows = torch.arange(first, first + self._sizes[block])
            rows = rows[self._needed[rows]]
            if len(rows):
                self._read[block] = self._pool.submit(self._read_block, rows)
            self._next, self._asked = self._next + 1, self._asked + self._sizes[block]

    def stored(self, samples: Tensor) -> list[StoredImage]:
        """The images of these numbers; waits for their blocks. Called by the threads."""
        blocks = self._blocks_of(samples)
        return [self._read[block].result()[sample] for block, sample in zip(blocks, samples.tolist(), strict=True)]

    def release(self) -> None:
        """A step is over: forget the images that no other step needs."""
        self._finished += 1
        end = self._reading.over(self._finished)
        done = self._order.images[self._released : end]
        done = done[self._needed[done]]
        for block, sample in zip(self._blocks_of(done), done.tolist(), strict=True):
            held = self._read[block].result()
            held.pop(sample)
            if not held:
                del self._read[block]
        self._released = end

    def _blocks_of(self, samples: Tensor) -> list[int]:
        blocks: list[int] = (torch.searchsorted(self._starts, samples, right=True) - 1).tolist()
        return blocks

    def _read_block(self, samples: Tensor) -> dict[int, StoredImage]:
        chunks = self._set.source.stored(self._set.part, self._set.rows[samples])
        images = [stored for chunk in chunks for stored in chunk]
        return dict(zip(samples.tolist(), images, strict=True))
