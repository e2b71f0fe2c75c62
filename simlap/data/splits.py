"""From the `data` section of an experiment to its training, validation and test parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simlap import rng
from simlap.config.schema import Data, DigitsData, Validation
from simlap.data.digits import DigitsSource
from simlap.data.parquet import ParquetSource
from simlap.data.source import ImageSet, Source
from simlap.errors import DataError

__all__ = ["DataInfo", "ImageSet", "Splits", "channel_statistics", "inspect_data", "load_splits", "validation_rows"]


@dataclass(frozen=True)
class DataInfo:
    """What is known of a dataset without decoding an image."""

    num_train: int
    """Images in the training part, after the validation split."""
    num_val: int
    num_test: int
    channels: int
    """Of the images."""
    class_names: tuple[str, ...]
    fingerprint: str
    """Changes with the data, not with the folder it lies in."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Splits:
    """A decoded dataset."""

    train: ImageSet
    val: ImageSet | None
    test: ImageSet
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of the training part, pixels in [0, 1]."""
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]


def inspect_data(data: Data) -> DataInfo:
    """Check a dataset before anything starts. Reads footers and label columns only. Raises DataError."""
    source = _open(data)
    train, val = _train_and_val(source, data)
    return DataInfo(
        num_train=len(train),
        num_val=len(val),
        num_test=len(source.labels("test")),
        channels=source.channels,
        class_names=source.class_names,
        fingerprint=source.fingerprint,
    )


def load_splits(data: Data) -> Splits:
    """Decode a dataset and split it. The split depends on the labels and `validation.split_seed` alone."""
    source = _open(data)
    train_rows, val_rows = _train_and_val(source, data)
    whole = ImageSet(source.images("train"), source.labels("train"))
    train = whole.subset(train_rows) if len(val_rows) else whole
    mean, std = channel_statistics(train.images)
    return Splits(
        train=train,
        val=whole.subset(val_rows) if len(val_rows) else None,
        test=ImageSet(source.images("test"), source.labels("test")),
        class_names=source.class_names,
        mean=mean,
        std=std,
    )


def validation_rows(labels: Tensor, validation: Validation) -> tuple[Tensor, Tensor]:
    """Rows of the training and of the validation part, each in ascending order.

    Every class gives `round(fraction * size)` images, drawn by a key of its own: a class's part does not change when
    other classes come or go.

    Args:
        labels: int64 [n], of the training set.
    """
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        count = math.floor(validation.fraction * len(rows) + 0.5)
        order = torch.randperm(len(rows), generator=rng.generator(validation.split_seed, "validation", label))
        held_out[rows[order[:count]]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images [n, c, h, w], scaled to [0, 1].

    From histograms in integer arithmetic, so the same on every machine. A constant channel gets standard deviation 1.
    """
    means, stds = [], []
    for channel in range(images.shape[1]):
        histogram = torch.zeros(256, dtype=torch.int64)
        for chunk in images[:, channel].split(4096):
            histogram += torch.bincount(chunk.flatten(), minlength=256)
        counts = histogram.tolist()
        total = sum(counts)
        first = sum(value * count for value, count in enumerate(counts))
        second = sum(value * value * count for value, count in enumerate(counts))
        means.append(first / total / 255)
        stds.append(math.sqrt(total * second - first * first) / total / 255 or 1.0)
    return tuple(means), tuple(stds)


def _open(data: Data) -> Source:
    return DigitsSource(data) if isinstance(data, DigitsData) else ParquetSource(data)


def _train_and_val(source: Source, data: Data) -> tuple[Tensor, Tensor]:
    """Rows of the two parts of the training set, after checking that the dataset can be trained on."""
    labels = source.labels("train")
    names = source.class_names
    where = source.where("train")
    if len(names) < 2:
        raise DataError(
            f"{where} has a single class ({names[0]!r}); at least two are needed to tell apart", key="data.train"
        )
    empty = _absent(labels, names)
    if empty:
        raise DataError(
            f"no training image of {empty} in {where} ({len(labels):,} images, {len(names)} classes)", key="data.train"
        )
    if data.validation == "none":
        return torch.arange(len(labels)), torch.empty(0, dtype=torch.int64)
    train, val = validation_rows(labels, data.validation)
    fraction = data.validation.fraction
    empty = _absent(labels[train], names)
    if empty:
        raise DataError(
            f"leaves no training image of {empty} in {where}; lower it or use `data.validation: none`",
            key="data.validation.fraction",
            value=fraction,
        )
    if not len(val):
        raise DataError(
            f"of every class rounds to no image at all in {where} ({len(labels):,} images, {len(names)} classes); "
            "raise it or use `data.validation: none`",
            key="data.validation.fraction",
            value=fraction,
        )
    return train, val


def _absent(labels: Tensor, names: tuple[str, ...]) -> str:
    """The classes without images, in words; empty where every class has some."""
    absent = (torch.bincount(labels, minlength=len(names)) == 0).nonzero()[:, 0].tolist()
    if not absent:
        return ""
    shown = ", ".join(f"{names[label]!r} (label {label})" for label in absent[:5])
    more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
    return ("class " if len(absent) == 1 else "classes ") + shown + more
