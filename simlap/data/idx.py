"""The IDX format of MNIST and Fashion-MNIST, plain or gzip-compressed (http://yann.lecun.com/exdb/mnist/)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simlap.data.source import PARTS, ImageSet, Part
from simlap.errors import DataError

_PREFIXES: dict[Part, str] = {"train": "train", "test": "t10k"}
_UINT8 = 8


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
        DataError: unreadable, another magic number, cut off, or longer than it says.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}", key=key) from error
    magic = bytes((0, 0, _UINT8, dimensions))
    if content[:4] != magic:
        raise DataError(
            f"{path} is no IDX file of bytes in {dimensions} dimension{'s' * (dimensions > 1)}: it begins with "
            f"{content[:4].hex() or 'nothing'}, not {magic.hex()}",
            key=key,
        )
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) < start or len(content) != start + math.prod(shape):
        fate = "was cut off" if len(content) < start + math.prod(shape) else "is too long"
        raise DataError(
            f"{path} {fate}: its header says {' x '.join(map(str, shape))} bytes, {max(0, len(content) - start)} are there",
            key=key,
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).reshape(shape)


def _find(folder: Path, part: Part, kind: str) -> Path | None:
    plain = folder / f"{_PREFIXES[part]}-{kind}-ubyte"
    return next((path for path in (plain, plain.with_name(f"{plain.name}.gz")) if path.is_file()), None)
