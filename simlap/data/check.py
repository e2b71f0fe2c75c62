"""A dataset's check, image by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from simlap.config.schema import Data
from simlap.data.channels import channel_histograms, statistics_of
from simlap.data.decode import DecodeError, decode_image, in_threads
from simlap.data.hierarchy import Hierarchy
from simlap.data.resize import fit_square
from simlap.data.source import PARTS, Part, StoredImage
from simlap.data.splits import Selection, select


@dataclass(frozen=True)
class DataReport:
    """What a look at every image of a dataset found."""

    class_names: tuple[str, ...]
    counts: dict[Literal["train", "val", "test"], tuple[int, ...]]
    """Images of each class in each part, whether they can be decoded or not."""
    channels: int
    sizes: dict[Part, tuple[tuple[int, int, int], ...]]
    """(width, height, how many images) as they are stored, the most frequent first; `train` holds the validation part too."""
    mean: tuple[float, ...] | None
    """Per channel, of the training part at its stored size, as far as it can be decoded; None where nothing can."""
    std: tuple[float, ...] | None
    hierarchy: Hierarchy | None
    fingerprint: str
    faults: tuple[str, ...]
    """Every image that cannot be decoded: its file or row, and why."""


@dataclass
class _Found:
    """Of one chunk."""

    sizes: Counter[tuple[int, int]]
    """(width, height)"""
    histograms: Tensor
    """int64 [c, 256]"""
    faults: list[str]


def check_dataset(data: Data) -> DataReport:
    """Look at every image that the `data` section selects. Holds a few chunks of images at a time, whatever the dataset's size.

    Raises:
        DataError: what keeps the dataset from being used at all. Images that cannot be decoded are listed in the report.
    """
    selection = select(data)
    source, size = selection.source, data.stored_size or data.image_size
    histograms = torch.zeros(source.channels, 256, dtype=torch.int64)
    sizes: dict[Part, Counter[tuple[int, int]]] = {part: Counter() for part in PARTS}
    faults: list[str] = []

    def look(chunk: Sequence[StoredImage]) -> _Found:
        return _look(chunk, source.channels, size)

    rows: list[tuple[Part, Tensor]] = [("train", selection.train), ("train", selection.val), ("test", selection.test)]
    for number, (part, chosen) in enumerate(rows):
        for found in in_threads(look, source.stored(part, chosen)):
            sizes[part].update(found.sizes)
            faults += found.faults
            if number == 0:  # the statistics are those of the images that are trained on
                histograms += found.histograms
    mean, std = statistics_of(histograms) if bool(histograms.any()) else (None, None)
    train, val, test = (_counts(selection, part, chosen) for part, chosen in rows)
    return DataReport(
        class_names=selection.class_names,
        counts={"train": train, "val": val, "test": test},
        channels=source.channels,
        sizes={part: tuple((*shape, count) for shape, count in sizes[part].most_common()) for part in PARTS},
        mean=mean,
        std=std,
        hierarchy=selection.hierarchy,
        fingerprint=source.fingerprint,
        faults=tuple(faults),
    )


def _look(chunk: Sequence[StoredImage], channels: int, size: int) -> _Found:
    found = _Found(Counter(), torch.zeros(channels, 256, dtype=torch.int64), [])
    squares = []
    for stored in chunk:
        try:
            image = decode_image(stored, channels)
        except DecodeError as error:
            found.faults.append(str(error))
        else:
            found.sizes[image.shape[2], image.shape[1]] += 1
            squares.append(fit_square(image[None], size))
    if squares:
        found.histograms = channel_histograms(torch.cat(squares))
    return found


def _counts(selection: Selection, part: Part, rows: Tensor) -> tuple[int, ...]:
    counts = torch.bincount(selection.labels(part, rows), minlength=len(selection.class_names))
    return tuple(counts.tolist())
