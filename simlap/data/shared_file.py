"""The file of a decoded dataset: a header that says what it holds, then the arrays, to be mapped as they lie there."""

from __future__ import annotations

import json
import mmap
import zlib
from typing import Any, BinaryIO

import torch
from torch import Tensor

from simlap.config.schema import Data
from simlap.data.source import ImageSet
from simlap.data.splits import Splits
from simlap.data.substitutes import BadImage

_MAGIC = b"simlap decoded images, 1\n"
_ALIGN = 4096
_NUMBER = 8
_TYPES = {"uint8": torch.uint8, "int64": torch.int64}


class DamagedError(Exception):
    """The file is not what its header says, or has none."""


def byte_size(splits: Splits) -> int:
    """Bytes that the file of a dataset takes, within some pages."""
    return sum(_aligned(array.nbytes) for array in _arrays(splits).values()) + 16 * _ALIGN


def write_splits(file: BinaryIO, splits: Splits, facts: dict[str, Any]) -> None:
    """Write a decoded dataset into an empty file.

    Layout: a line that names the format; length and CRC-32 of the header, 8 bytes each, little endian; the header, JSON; then
    the arrays, each at a multiple of 4,096 bytes after the header's end and with its own CRC-32 in the header.

    Args:
        file: to be written, empty.
        splits: to be written.
        facts: what the content is determined by, JSON-able; kept in the header.
    """
    arrays = _arrays(splits)
    places: dict[str, dict[str, Any]] = {}
    end = 0
    for name, array in arrays.items():
        places[name] = {
            "type": str(array.dtype).removeprefix("torch."),
            "shape": list(array.shape),
            "offset": end,
            "crc32": zlib.crc32(array.numpy().data),
        }
        end += _aligned(array.nbytes)
    header = json.dumps(  # keys stay in order: the hierarchy's groups have one
        {
            "facts": facts,
            "arrays": places,
            "bytes": end,
            "class_names": splits.class_names,
            "mean": splits.mean,
            "std": splits.std,
            "hierarchy": splits.hierarchy,
            "bad": [vars(image) for image in splits.bad],
        }
    ).encode()
    file.write(_MAGIC + _number(len(header)) + _number(zlib.crc32(header)) + header)
    first = _aligned(file.tell())
    for name, array in arrays.items():
        file.seek(first + places[name]["offset"])
        file.write(array.numpy().data)
    file.truncate(first + end)
    file.flush()


def map_splits(file: BinaryIO, facts: dict[str, Any], data: Data) -> Splits:
    """The dataset in a file, its arrays mapped: the memory of all processes that map it is the same.

    Mappings are private: a page that is written to is copied for the writer. They keep the file's lock until they are gone,
    and may outlive the file's name.

    Args:
        file: opened for reading.
        facts: that it was written with.
        data: of the experiment: sizes at evaluation are taken from there.

    Raises:
        DamagedError: it is incomplete, its content has changed, or its facts are others.
    """
    try:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError as error:
        raise DamagedError("it is empty") from error
    header, first = _header(mapped)
    if header["facts"] != facts:
        raise DamagedError("it holds other data")
    if len(mapped) != first + header["bytes"]:
        raise DamagedError(f"it has {len(mapped):,} bytes, not {first + header['bytes']:,}")
    whole = torch.frombuffer(mapped, dtype=torch.uint8)
    arrays: dict[str, Tensor] = {}
    for name, place in header["arrays"].items():
        dtype, shape = _TYPES[place["type"]], place["shape"]
        start = first + place["offset"]
        content = whole[start : start + torch.Size(shape).numel() * dtype.itemsize]
        if zlib.crc32(content.numpy().data) != place["crc32"]:
            raise DamagedError(f"its {name} have changed")
        arrays[name] = content.view(dtype).view(shape)

    def part(name: str) -> ImageSet:
        return ImageSet(arrays[f"{name}.images"], arrays[f"{name}.labels"])

    return Splits(
        train=part("train"),
        val=part("val") if "val.images" in arrays else None,
        test=part("test"),
        class_names=tuple(header["class_names"]),
        mean=tuple(header["mean"]),
        std=tuple(header["std"]),
        image_size=data.image_size,
        eval_size=data.eval_size or data.image_size,
        interpolation=data.augment.interpolation,
        hierarchy=header["hierarchy"],
        bad=tuple(BadImage(**image) for image in header["bad"]),
    )


def _header(mapped: mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header, and where the first array begins."""
    start = len(_MAGIC) + 2 * _NUMBER
    if mapped[: len(_MAGIC)] != _MAGIC:
        raise DamagedError("it does not begin as such a file does")
    length = int.from_bytes(mapped[len(_MAGIC) : len(_MAGIC) + _NUMBER], "little")
    text = mapped[start : start + length]
    if mapped[start - _NUMBER : start] != _number(zlib.crc32(text)):
        raise DamagedError("its header has changed")
    header: dict[str, Any] = json.loads(text)
    return header, _aligned(start + length)


def _arrays(splits: Splits) -> dict[str, Tensor]:
    sets = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {
        f"{name}.{kind}": array.contiguous()
        for name, part in sets.items()
        if part is not None
        for kind, array in (("images", part.images), ("labels", part.labels))
    }


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _number(value: int) -> bytes:
    return value.to_bytes(_NUMBER, "little")
