"""Sets that are streamed from memory, and what they read."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from simlap.config.schema import DigitsData
from simlap.config.schema.data import Streaming
from simlap.data.arrays import ArraySource
from simlap.data.decode import Mend, decoded_squares
from simlap.data.source import ImageSet, Part, StoredImage
from simlap.data.streamed import StreamedSet


def numbered(n: int, channels: int = 1) -> ImageSet:
    """Images that tell their own number in their first two pixels; five classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, 8, 8), dtype=torch.uint8, generator=generator)
    images[:, :, 0, 0] = (torch.arange(n) % 256)[:, None].to(torch.uint8)
    images[:, :, 0, 1] = (torch.arange(n) // 256)[:, None].to(torch.uint8)
    return ImageSet(images, torch.arange(n) % 5)


class Groups(ArraySource):
    """A source that is read by groups of rows, and keeps count. `broken`: rows that cannot be decoded."""

    def __init__(self, images: ImageSet, group: int | None, broken: Sequence[int] = ()) -> None:
        names = [str(label) for label in range(5)]
        super().__init__("x", {"train": images, "test": images}, names, where=lambda part: "memory", key="data.train")
        self.group, self.broken = group, set(broken)
        self.reads: list[int] = []
        """Groups, every time one is read."""
        self._lock, self._given = threading.Lock(), list[weakref.ref[StoredImage]]()

    def breaks(self, part: Part) -> Tensor | None:  # type: ignore[override]  # an array has none
        count = len(self.labels(part))
        return None if self.group is None else torch.arange(0, count, self.group)

    def images(self, part: Part, rows: Tensor, size: int, mend: Mend | None = None) -> Tensor:
        return decoded_squares(self, part, rows, size, mend)

    def stored(self, part: Part, rows: Tensor) -> Iterator[Sequence[StoredImage]]:
        assert (rows.diff() > 0).all()
        if self.group is not None:
            with self._lock:
                self.reads += (rows // self.group).unique().tolist()
        for chunk in super().stored(part, rows):
            images = [
                replace(image, read=lambda: b"no image") if image.place in self._places else image for image in chunk
            ]
            with self._lock:
                self._given += map(weakref.ref, images)
            yield images

    @property
    def held(self) -> int:
        """Encoded images that somebody holds."""
        with self._lock:
            self._given = [ref for ref in self._given if ref() is not None]
            return len(self._given)

    @property
    def _places(self) -> set[str]:
        return {f"memory, image {row}" for row in self.broken}


def streamed(
    source: ArraySource, channels: int | None = None, rows: Tensor | None = None, **settings: Any
) -> StreamedSet:
    """The source's training images, decoded by two threads unless said otherwise."""
    settings = {"workers": 2, "prefetch": 2, "block": 4, "window": 3, **settings}
    data = DigitsData(source="digits", streaming=Streaming(**settings))
    rows = torch.arange(len(source.labels("train"))) if rows is None else rows
    labels = source.labels("train")[rows]
    return StreamedSet(source, "train", rows, labels, shape=(channels or source.channels, 8, 8), data=data)


def threads() -> list[str]:
    """Decoders that are alive."""
    return [thread.name for thread in threading.enumerate() if "simlap-decode" in thread.name or "Pool" in thread.name]
