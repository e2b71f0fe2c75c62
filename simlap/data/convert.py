"""A dataset's conversion to Parquet shards in the Hugging Face image layout."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from simlap import rng
from simlap.config.schema import Data
from simlap.data.check import DataReport, check_dataset
from simlap.data.decode import DecodeError, decode_image, in_threads
from simlap.data.huggingface import image_schema
from simlap.data.source import PARTS, Part, StoredImage
from simlap.data.splits import Selection, select
from simlap.errors import DataError
from simlap.storage import Storage

__all__ = ["Converted", "DataReport", "check_dataset", "convert"]

_ROWS_PER_GROUP = 256


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    files: tuple[str, ...]
    """Paths of the shards, relative to the target."""
    num_images: dict[Part, int]
    num_bytes: int
    """Of all shards."""


def convert(data: Data, target: str, *, rows_per_shard: int = 5000, shuffle: bool = False) -> Converted:
    """Write a dataset as Parquet shards that `source: parquet` and the `datasets` library read.

    `train/` holds the training part (with the images that would be held out for validation, which is drawn anew from it) and
    `test/` the test part, both after `data.classes` and `data.fraction`, in the source's order unless they are shuffled. Image
    files keep their bytes, arrays become PNG, without loss. Each shard is written whole, and its name says how many there are,
    so that a conversion that was broken off is not taken for a dataset.

    Args:
        data: of the experiment.
        target: an empty or new folder, local or any pyarrow.fs URI.
        rows_per_shard: images to a file, which is put together in memory.
        shuffle: write each part in a random order, always the same: `data.streaming` shuffles neighbouring images only, so
            they must not lie sorted by class. Parquet that is shuffled is read once for every shard that is written.

    Raises:
        DataError: an unfit dataset, an image that cannot be decoded, or a target that holds something or cannot be written.
    """
    if rows_per_shard < 1:
        raise DataError("must be at least 1", key="rows_per_shard", value=rows_per_shard)
    storage = Storage(target)
    try:
        there = storage.list()
    except OSError as error:
        raise DataError(f"cannot be used as a folder: {error}", key="target", value=target) from error
    if there:
        raise DataError(
            f"is not empty (it holds {', '.join(there[:5])}); give another folder", key="target", value=target
        )
    selection = select(data)
    rows: dict[Part, Tensor] = {
        "train": torch.cat((selection.train, selection.val)).sort().values,
        "test": selection.test,
    }
    files, written = [], 0
    for part in PARTS:
        order = torch.arange(len(rows[part]))
        if shuffle:
            order = torch.randperm(len(order), generator=rng.generator("convert", part))
        shards = rows[part][order].split(rows_per_shard)
        for number, shard in enumerate(shards):
            file = f"{part}/{part}-{number:05d}-of-{len(shards):05d}.parquet"
            content = _shard(selection, part, shard)
            try:
                storage.write(file, content)
            except OSError as error:
                raise DataError(f"cannot write {storage.describe(file)}: {error}", key="target") from error
            files.append(file)
            written += len(content)
    return Converted(tuple(files), {part: len(rows[part]) for part in PARTS}, written)


def _shard(selection: Selection, part: Part, rows: Tensor) -> bytes:
    """The Parquet file of the images at `rows`, in this order, in memory."""
    source, order = selection.source, rows.argsort()

    def encode(chunk: Sequence[StoredImage]) -> list[dict[str, Any]]:
        return [{"bytes": _encoded(stored, source.channels), "path": stored.name} for stored in chunk]

    images: list[dict[str, Any]] = []
    try:
        for encoded in in_threads(encode, source.stored(part, rows[order])):
            images += encoded
    except DecodeError as error:
        raise DataError(
            f"{error}; the check of a dataset lists all images that cannot be decoded", key=source.key(part)
        ) from error
    images = [images[place] for place in order.argsort().tolist()]
    for row, image in zip(rows.tolist(), images, strict=True):
        image["path"] = image["path"] or f"{row:08d}.png"
    schema = image_schema(selection.class_names, grey=source.channels == 1)
    labels = pa.array(selection.labels(part, rows).numpy())
    table = pa.Table.from_arrays([pa.array(images, schema.field("image").type), labels], schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=_ROWS_PER_GROUP)
    return buffer.getvalue()


def _encoded(stored: StoredImage, channels: int) -> bytes:
    """The file's bytes, once they are known to decode, or an array as PNG. Raises DecodeError."""
    from torchvision.io import encode_png  # seconds of import time, paid only by those who use it

    try:
        content = stored.read()
    except OSError as error:
        raise DecodeError(stored.place, str(error)) from error
    image = decode_image(replace(stored, read=lambda: content), channels)
    return content if isinstance(content, bytes) else encode_png(image).numpy().tobytes()
