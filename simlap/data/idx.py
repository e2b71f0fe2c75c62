"""The IDX format of MNIST and Fashion-MNIST, plain or gzip-compressed (http://yann.lecun.com/exdb/mnist/)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor

from simlap.data.source import PARTS, ImageSet, Part
from simlap.errors import DataError

_PREFIXES: dict[Part, str] = {"train": "train", "test": "t10k"}
_UINT8 = 8
MAX_BYTES = 1 << 32
"""Of an array; the largest sets in this format have half a GiB."""


def find_idx(folders: list[Path]) -> Path | None:
    """The first folder that holds all four files, each plain or with `.gz`; None where there is none."""
    for folder in folders:
        if all(_find(folder, part, kind) for part in PARTS for kind in ("images-idx3", "labels-idx1")):
            return folder
    return None


def read_idx_set(folder: Path, num_classes: int, *, key: str) -> dict[Part, ImageSet]:
    """Images uint8 [n, 1, h, w] and labels of both parts in a folder that `find_idx` gave. Raises DataError at `key`."""
    parts: dict[Part, ImageSet] = {}
    for part in PARTS:
        image_file, label_file = (_find(folder, part, kind) for kind in ("images-idx3", "labels-idx1"))
        if image_file is None or label_file is None:
            raise DataError(f"the files {_PREFIXES[part]}-*-ubyte are no longer in {folder}", key=key)
        images, labels = read_idx(image_file, 3, key=key), read_idx(label_file, 1, key=key).to(torch.int64)
        if len(images) != len(labels):
            raise DataError(f"{image_file} has {len(images)} images, {label_file} {len(labels)} labels", key=key)
        if not len(labels):
            raise DataError(f"{image_file} has no images", key=key)
        if int(labels.max()) >= num_classes:
            row = int(labels.argmax())
            raise DataError(
                f"{label_file}, item {row}: label {int(labels[row])}; there are {num_classes} classes", key=key
            )
        parts[part] = ImageSet(images[:, None], labels)
    return parts


def read_idx(path: Path, dimensions: int, *, key: str) -> Tensor:
    """One file's array of unsigned bytes.

    The header: two zero bytes, the type (8), the number of dimensions, then each dimension as a big-endian 32-bit number.

    Args:
        path: of the file; compressed where it ends with `.gz`.
        dimensions: that it must have.
        key: named in errors.

    Raises:
        DataError: unreadable, another magic number, cut off, longer than it says, or larger than `MAX_BYTES`.
    """
    try:
        opened = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115 - below
        with cast("IO[bytes]", opened) as file:
            shape = _read_shape(file, path, dimensions, key)
            size = math.prod(shape)
            content = file.read(size)
            is_over = bool(file.read(1))  # a few compressed bytes can stand for any number of them
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}", key=key) from error
    if len(content) < size or is_over:
        fate, there = ("is too long", "more") if is_over else ("was cut off", f"{len(content)}")
        raise DataError(f"{path} {fate}: its header says {_text(shape)} bytes, {there} are there", key=key)
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy()).reshape(shape)


def _read_shape(file: IO[bytes], path: Path, dimensions: int, key: str) -> list[int]:
    """The header's. Raises DataError where it is none of an array that can be read."""
    header = file.read(4 + 4 * dimensions)
    magic = bytes((0, 0, _UINT8, dimensions))
    if header[:4] != magic:
        raise DataError(
            f"{path} is no IDX file of bytes in {dimensions} dimension{'s' * (dimensions > 1)}: it begins with "
            f"{header[:4].hex() or 'nothing'}, not {magic.hex()}",
            key=key,
        )
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path} was cut off: it ends within its header", key=key)
    shape = [int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4)]
    if math.prod(shape) > MAX_BYTES:
        raise DataError(
            f"{path} is too large: its header says {_text(shape)} bytes, at most {MAX_BYTES} are read", key=key
        )
    return shape


def _text(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _find(folder: Path, part: Part, kind: str) -> Path | None:
    plain = folder / f"{_PREFIXES[part]}-{kind}-ubyte"
    return next((path for path in (plain, plain.with_name(f"{plain.name}.gz")) if path.is_file()), None)
