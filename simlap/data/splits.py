"""From the `data` section of an experiment to its training, validation and test parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from simlap.config.schema import Data, DigitsData, FolderData, ParquetData
from simlap.data.channels import channel_statistics, with_channels
from simlap.data.decode import DecodeError, Mend
from simlap.data.digits import open_digits
from simlap.data.folder import open_folder
from simlap.data.hierarchy import Hierarchy, restrict
from simlap.data.known_hierarchies import known_hierarchy
from simlap.data.memory import check_memory
from simlap.data.parquet import ParquetSource
from simlap.data.selection import chosen_classes, fraction_rows, validation_rows
from simlap.data.source import ImageSet, Part, Source
from simlap.data.streamed import StreamedSet, check_shuffling
from simlap.data.substitutes import BadImage, Substitutes
from simlap.data.torchvision_sets import open_torchvision
from simlap.errors import DataError

__all__ = ["DataInfo", "ImageSet", "Selection", "Splits", "inspect_data", "load_splits", "select"]


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
    class_sizes: tuple[int, ...]
    """Images of each class in the training part, after the validation split."""
    hierarchy: Hierarchy | None = field(default=None, hash=False)
    """Relations of the classes, where they are known."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Splits:
    """A dataset, decoded, or with `data.streaming` decoded when images are asked for."""

    train: ImageSet
    """uint8 [n, c, t, t], t = `data.stored_size`, or `image_size` where that is not given. So are the others."""
    val: ImageSet | None
    test: ImageSet
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, pixels in [0, 1]: `data.mean`, or of the training part as it is stored (of a sample of it, where it is
    streamed: see `StreamedSet.statistics`)."""
    std: tuple[float, ...]
    image_size: int
    """Side of the network's input."""
    eval_size: int
    """At evaluation, images are resized to this side, then centre-cropped to `image_size`."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Of the resize at evaluation: that of the training crop, so that both see images that are blurred alike."""
    hierarchy: Hierarchy | None = field(default=None, hash=False)
    """Relations of the classes, where they are known."""
    bad: tuple[BadImage, ...] = ()
    """Images for which others stand in, of what was decoded beforehand; see `bad_images`."""

    def bad_images(self) -> tuple[BadImage, ...]:
        """Images that cannot be decoded, for which others stand in; where images are streamed, those met so far."""
        parts = (self.train, self.val, self.test)
        streamed = [part.substitutes for part in parts if isinstance(part, StreamedSet)]
        return self.bad + tuple(image for one in streamed if one is not None for image in one.found)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of each set."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: len(part) for name, part in parts.items() if part is not None}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.train.shape[0]


@dataclass(frozen=True)
class Selection:
    """An opened dataset, and the images of it that an experiment uses."""

    source: Source
    class_names: tuple[str, ...]
    new_labels: Tensor
    """int64, for each label of the source: its label here, or -1 where the class is left out."""
    train: Tensor
    """int64, rows of the source's training part, ascending. So are the others."""
    val: Tensor
    """Rows of the source's training part as well."""
    test: Tensor
    hierarchy: Hierarchy | None

    def labels(self, part: Part, rows: Tensor) -> Tensor:
        """int64 [len(rows)]: the labels 0, 1, ... of `class_names`."""
        return self.new_labels[self.source.labels(part)[rows]]


def inspect_data(data: Data) -> DataInfo:
    """Check a dataset before anything starts. Decodes no image. Raises DataError."""
    selection = select(data)
    if data.streaming is not None:
        check_shuffling(_streamed(selection, data, selection.source.channels)[0], data)
    sizes = torch.bincount(selection.labels("train", selection.train), minlength=len(selection.class_names))
    return DataInfo(
        num_train=len(selection.train),
        num_val=len(selection.val),
        num_test=len(selection.test),
        channels=selection.source.channels,
        class_names=selection.class_names,
        fingerprint=selection.source.fingerprint,
        class_sizes=tuple(sizes.tolist()),
        hierarchy=selection.hierarchy,
    )


def load_splits(
    data: Data,
    *,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    copies: int | None = None,
) -> Splits:
    """Decode a dataset and split it; with `data.streaming`, only split it.

    The split depends on the labels and `validation.split_seed` alone.

    Args:
        data: of the experiment.
        channels: 1 or 3; images that have another number are converted (default: as they are). For transfer, where a backbone
            that has seen one dataset gets another.
        mean: per channel, to be used instead of the dataset's; given together with `std`.
        std: likewise.
        copies: how many processes of this machine hold the images, all of which must fit into its memory (default: as
            many as the launcher has started here).

    Raises:
        DataError: the data are missing, unreadable or unfit, or do not fit into memory.
    """
    if (mean is None) != (std is None):
        raise ValueError("mean and std must be given together")
    selection = select(data)
    channels = channels or selection.source.channels
    if data.streaming is None:
        train, val, test, bad = _decoded(selection, data, channels, copies)
    else:
        train, val, test = _streamed(selection, data, channels)
        bad = ()
    if mean is None and channels == selection.source.channels:
        mean, std = data.mean, data.std
    if mean is None or std is None:
        mean, std = train.statistics() if isinstance(train, StreamedSet) else channel_statistics(train.images)
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"mean and std must have {channels} values, one per channel")
    return Splits(
        train=train,
        val=val,
        test=test,
        class_names=selection.class_names,
        mean=tuple(mean),
        std=tuple(std),
        image_size=data.image_size,
        eval_size=data.eval_size or data.image_size,
        interpolation=data.augment.interpolation,
        hierarchy=selection.hierarchy,
        bad=bad,
    )


def _decoded(
    selection: Selection, data: Data, channels: int, copies: int | None
) -> tuple[ImageSet, ImageSet | None, ImageSet, tuple[BadImage, ...]]:
    """Training, validation and test part, in memory, and the images for which others stand in."""
    source, size = selection.source, data.stored_size or data.image_size
    count = len(selection.train) + len(selection.val) + len(selection.test)
    held = source.channels + (channels if channels != source.channels else 0)
    key = "data.stored_size" if data.stored_size else "data.image_size"
    check_memory(count, held, size, key=key, copies=copies)

    sets = {name: _substitutes(selection, data, name) for name in ("train", "val", "test")}

    def decoded(part: Part, rows: Tensor, mend: Mend) -> ImageSet:
        images = with_channels(source.images(part, rows, size, mend), channels)
        return ImageSet(images, selection.labels(part, rows))

    held_out = set(selection.val.tolist())

    def mend(row: int, error: DecodeError) -> Tensor:
        return sets["val" if row in held_out else "train"].mend(row, error)

    # one reading for both parts, and no copy: they are the two ends of one tensor
    whole = decoded("train", torch.cat((selection.train, selection.val)), mend)
    cut = len(selection.train)
    train = ImageSet(whole.images[:cut], whole.labels[:cut])
    val = ImageSet(whole.images[cut:], whole.labels[cut:]) if len(selection.val) else None
    test = decoded("test", selection.test, sets["test"].mend)
    return train, val, test, tuple(image for one in sets.values() for image in one.found)


def _substitutes(selection: Selection, data: Data, name: str) -> Substitutes:
    """For the images of the `train`, `val` or `test` set."""
    part: Part = "test" if name == "test" else "train"
    rows: Tensor = getattr(selection, name)
    return Substitutes(
        selection.source, part, rows, selection.labels(part, rows), name=name, max_share=data.max_bad_share
    )


def _streamed(selection: Selection, data: Data, channels: int) -> tuple[StreamedSet, StreamedSet | None, StreamedSet]:
    """The same, not decoded."""
    size = data.stored_size or data.image_size

    def opened(name: str) -> StreamedSet:
        mended = _substitutes(selection, data, name)
        shape = (channels, size, size)
        return StreamedSet(
            selection.source, mended.part, mended.rows, mended.labels, shape=shape, data=data, substitutes=mended
        )

    return opened("train"), opened("val") if len(selection.val) else None, opened("test")


def select(data: Data) -> Selection:
    """Open a dataset and choose its images, after checking that it can be trained on.

    Classes are chosen first, then the share of each, then the validation part. Raises DataError.
    """
    source = _open(data)
    if data.fingerprint is not None and data.fingerprint != source.fingerprint:
        raise DataError(
            f"the data in {source.where('train')} and {source.where('test')} are others: their fingerprint is "
            f"{source.fingerprint}",
            key="data.fingerprint",
            value=data.fingerprint,
        )
    if data.mean is not None and len(data.mean) != source.channels:
        raise DataError(
            f"needs one value per channel; the images of {source.where('train')} have {source.channels}",
            key="data.mean",
            value=list(data.mean),
        )
    kept = chosen_classes(source.class_names, data.classes)
    names = tuple(source.class_names[label] for label in kept)
    new_labels = torch.full((len(source.class_names),), -1)
    new_labels[kept] = torch.arange(len(kept))
    labels = source.labels("train")
    rows = (new_labels[labels] >= 0).nonzero()[:, 0]
    _check_classes(source, new_labels[labels[rows]], names)
    if data.fraction < 1:
        rows = rows[fraction_rows(labels[rows], data.fraction)]
    train, val = rows, rows[:0]
    if data.validation != "none":
        train, val = (rows[part] for part in validation_rows(labels[rows], data.validation))
        _check_validation(source, new_labels[labels[train]], names, len(val), data.validation.fraction)
    test = (new_labels[source.labels("test")] >= 0).nonzero()[:, 0]
    if not len(test):
        raise DataError(f"no test image of {', '.join(names[:5])} in {source.where('test')}", key=source.key("test"))
    return Selection(source, names, new_labels, train, val, test, _hierarchy(source, names))


def _open(data: Data) -> Source:
    match data:
        case DigitsData():
            return open_digits()
        case ParquetData():
            return ParquetSource(data)
        case FolderData():
            return open_folder(data)
        case _:
            return open_torchvision(data)


def _hierarchy(source: Source, names: tuple[str, ...]) -> Hierarchy | None:
    own = source.hierarchy or known_hierarchy(source.class_names)
    return restrict(own, names) if own else None


def _check_classes(source: Source, labels: Tensor, names: tuple[str, ...]) -> None:
    where = source.where("train")
    if len(names) < 2:
        raise DataError(
            f"{where} has a single class ({names[0]!r}); at least two are needed to tell apart",
            key=source.key("train"),
        )
    empty = _absent(labels, names)
    if empty:
        raise DataError(
            f"no training image of {empty} in {where} ({len(labels):,} images, {len(names)} classes)",
            key=source.key("train"),
        )


def _check_validation(source: Source, train: Tensor, names: tuple[str, ...], num_val: int, fraction: float) -> None:
    """`train`: labels that the split leaves for training."""
    where = source.where("train")
    empty = _absent(train, names)
    if empty:
        raise DataError(
            f"leaves no training image of {empty} in {where}; lower it or use `data.validation: none`",
            key="data.validation.fraction",
            value=fraction,
        )
    if not num_val:
        raise DataError(
            f"of every class rounds to no image at all in {where} ({len(train):,} images, {len(names)} classes); "
            "raise it or use `data.validation: none`",
            key="data.validation.fraction",
            value=fraction,
        )


def _absent(labels: Tensor, names: tuple[str, ...]) -> str:
    """The classes without images, in words; empty where every class has some."""
    absent = (torch.bincount(labels, minlength=len(names)) == 0).nonzero()[:, 0].tolist()
    if not absent:
        return ""
    shown = ", ".join(f"{names[label]!r} (label {label})" for label in absent[:5])
    more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
    return ("class " if len(absent) == 1 else "classes ") + shown + more
