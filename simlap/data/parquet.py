"""Parquet in the Hugging Face image layout: a struct{bytes, path} or binary image column, and integer labels."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pyarrow import fs as pafs
from torch import Tensor

from simlap.config.schema import ParquetData
from simlap.data.decode import Mend, decoded_squares
from simlap.data.hierarchy import Hierarchy
from simlap.data.huggingface import class_names_in, is_grey
from simlap.data.places import filesystem
from simlap.data.source import Part, StoredImage
from simlap.errors import DataError

Array = NDArray[np.int64]

_IMAGE_COLUMNS = ("image", "img")
_MAGIC = b"PAR1"
_CHUNK = 256  # rows, fewer where these would be more than _CHUNK_BYTES
_CHUNK_BYTES = 16 << 20
_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.parquet")
_MAX_LABEL = 1 << 31


@dataclass(frozen=True)
class _Shard:
    """One Parquet file."""

    name: str
    """Path relative to the part's folder."""
    path: str
    size: int
    footer_hash: str
    schema: Any  # pa.Schema
    groups: tuple[int, ...]
    """Rows of each row group."""

    @property
    def rows(self) -> int:
        return sum(self.groups)


class _PartFiles:
    """The files of the training or the test part, checked, with their labels."""

    def __init__(self, part: Part, uri: str, data: ParquetData) -> None:
        self.key = f"data.{part}"
        self._fs, self._root = filesystem(self.key, uri)
        self.where = uri if "://" in uri else self._root
        try:
            self.shards = self._read_footers()
            self.image_column = self._find_image_column(data.image_column)
            self.labels, self.class_names = self._read_labels(data.label_column)
            self.grey = all(is_grey(shard.schema, self.image_column) for shard in self.shards)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {self.where}: {error}", key=self.key) from error
        if not len(self.labels):
            raise DataError(f"{self.where} has no rows", key=self.key)

    # --- files

    def _read_footers(self) -> list[_Shard]:
        info = self._fs.get_file_info(self._root)
        if info.type == pafs.FileType.NotFound:
            raise DataError(f"no such file or folder: {self.where}", key=self.key)
        if info.type == pafs.FileType.File:
            return [self._read_footer(info, info.base_name)]
        found = self._fs.get_file_info(pafs.FileSelector(self._root))
        files = sorted(
            (item for item in found if item.type == pafs.FileType.File and item.base_name.endswith(".parquet")),
            key=lambda item: item.base_name,
        )
        if not files:
            names = ", ".join(sorted(item.base_name for item in found)[:10]) or "nothing"
            raise DataError(f"no *.parquet file in the folder {self.where} (it holds: {names})", key=self.key)
        self._check_complete([item.base_name for item in files])
        return [self._read_footer(item, item.base_name) for item in files]

    def _check_complete(self, names: list[str]) -> None:
        """Where shards say how many there are, as in `train-00000-of-00005.parquet`, all must be there."""
        for match in filter(None, map(_NUMBERED.fullmatch, names)):
            stem, total = match[1], match[3]
            for number in range(int(total)):
                name = f"{stem}-{number:05d}-of-{total}.parquet"
                if name not in names:
                    raise DataError(f"the shard {name} is missing in {self.where}", key=self.key)

    def _read_footer(self, info: Any, name: str) -> _Shard:
        with self._fs.open_input_file(info.path) as file:
            size = file.size()
            tail = b""
            if size >= 12:
                file.seek(size - 8)
                tail = file.read(8)
            length = int.from_bytes(tail[:4], "little")
            if tail[4:] != _MAGIC or length > size - 12:
                raise DataError(f"{info.path} is not a Parquet file, or it was cut off", key=self.key)
            file.seek(size - 8 - length)
            footer_hash = hashlib.sha256(file.read(length)).hexdigest()
            file.seek(0)
            try:
                parquet = pq.ParquetFile(file)
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{info.path}: damaged Parquet footer: {error}", key=self.key) from error
            metadata = parquet.metadata
            groups = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            return _Shard(name, info.path, size, footer_hash, parquet.schema_arrow, groups)

    def files(self) -> set[str]:
        """Where the files are, wherever links lead."""
        local = isinstance(self._fs, pafs.LocalFileSystem)
        return {os.path.realpath(shard.path) if local else shard.path for shard in self.shards}

    # --- columns

    def _find_image_column(self, wanted: str | None) -> str:
        columns = self.shards[0].schema.names
        if wanted is None:
            here = [name for name in _IMAGE_COLUMNS if name in columns]
            if len(here) != 1:
                problem = "both `image` and `img`" if here else "neither `image` nor `img`"
                raise DataError(
                    f"{self.shards[0].path} ({self.key}) has {problem}; name its image column here",
                    key="data.image_column",
                    choices=columns,
                )
            wanted = here[0]
        for shard in self.shards:
            kind = self._type_of(shard, wanted, "data.image_column")
            if pa.types.is_struct(kind):
                names = [kind.field(i).name for i in range(kind.num_fields)]
                fits = "bytes" in names and _is_binary(kind.field("bytes").type)
            else:
                fits = _is_binary(kind)
            if not fits:
                raise DataError(
                    f"the column in {shard.path} is {kind}; it must be binary or struct<bytes: binary, path: string>",
                    key="data.image_column",
                    value=wanted,
                )
        return wanted

    def _type_of(self, shard: _Shard, column: str, key: str) -> Any:
        columns = shard.schema.names
        if column not in columns:
            raise DataError(f"no such column in {shard.path}", key=key, value=column, choices=columns)
        return shard.schema.field(column).type

    def _read_labels(self, column: str) -> tuple[Tensor, tuple[str, ...] | None]:
        parts, names = [], None
        for shard in self.shards:
            kind = self._type_of(shard, column, "data.label_column")
            if not pa.types.is_integer(kind):
                raise DataError(
                    f"the column in {shard.path} is {kind}; labels must be integers",
                    key="data.label_column",
                    value=column,
                )
            with self._fs.open_input_file(shard.path) as file:
                values = pq.ParquetFile(file).read(columns=[column]).column(0)
            valid = pc.and_(pc.greater_equal(values, 0), pc.less(values, _MAX_LABEL))
            row = pc.index(pc.fill_null(valid, False), False).as_py()
            if row >= 0:
                raise DataError(
                    f"{shard.path}, row {row}: label {values[row].as_py()}; labels must be 0, 1, ... (a set without "
                    "labels cannot be used)",
                    key="data.label_column",
                    value=column,
                )
            parts.append(torch.tensor(values.cast(pa.int64()).to_numpy()))
            names = names or class_names_in(shard.schema, column)
        return torch.cat(parts), names

    # --- images

    @property
    def breaks(self) -> Tensor:
        """int64, the first row of every row group that has any."""
        sizes = torch.tensor([rows for shard in self.shards for rows in shard.groups if rows])
        return sizes.cumsum(0) - sizes

    def stored(self, rows: Tensor) -> Iterator[Sequence[StoredImage]]:
        """The images at `rows`, ascending. Row groups without any of them are not read."""
        wanted, first = rows.numpy(), 0
        for shard in self.shards:
            here = _between(wanted, first, shard.rows)
            if len(here):
                try:
                    yield from self._stored(shard, here)
                except (OSError, pa.ArrowException) as error:
                    raise DataError(f"cannot read {shard.path}: {error}", key=self.key) from error
            first += shard.rows

    def _stored(self, shard: _Shard, rows: Array) -> Iterator[Sequence[StoredImage]]:
        chunk = max(1, min(_CHUNK, _CHUNK_BYTES * shard.rows // shard.size))
        with self._fs.open_input_file(shard.path) as file:
            parquet, start = pq.ParquetFile(file), 0
            for group, count in enumerate(shard.groups):
                if len(_between(rows, start, count)):
                    first = start
                    for batch in parquet.iter_batches(chunk, row_groups=[group], columns=[self.image_column]):
                        here = _between(rows, first, len(batch))
                        yield _images(shard.path, (here + first).tolist(), batch.column(0).take(pa.array(here)))
                        first += len(batch)
                start += count


class ParquetSource:
    """A local file, a folder of `*.parquet` shards (in the order of their names) or any pyarrow.fs URI."""

    hierarchy: Hierarchy | None = None

    def __init__(self, data: ParquetData) -> None:
        self._parts: dict[Part, _PartFiles] = {
            "train": _PartFiles("train", data.train, data),
            "test": _PartFiles("test", data.test, data),
        }
        train, test = self._parts["train"], self._parts["test"]
        if shared := train.files() & test.files():
            raise DataError(
                f"{min(shared)} is also among the training files; the test set must hold other images", key="data.test"
            )
        if train.class_names and test.class_names and train.class_names != test.class_names:
            differ = next(
                (f"{a!r} and {b!r}" for a, b in zip(train.class_names, test.class_names, strict=False) if a != b),
                f"{len(train.class_names)} and {len(test.class_names)} of them",
            )
            raise DataError(
                f"class names in {test.where} differ from those in {train.where}: {differ}", key="data.test"
            )
        names = train.class_names or test.class_names
        self.class_names = names or tuple(str(label) for label in range(int(train.labels.max()) + 1))
        for part in (train, test):
            self._check_range(part, data.label_column, "named" if names else "in the training part")
        self.channels = 1 if train.grey and test.grey else 3
        self.fingerprint = self._fingerprint(data.label_column)

    def labels(self, part: Part) -> Tensor:
        return self._parts[part].labels

    def images(self, part: Part, rows: Tensor, size: int, mend: Mend | None = None) -> Tensor:
        return decoded_squares(self, part, rows, size, mend)

    def stored(self, part: Part, rows: Tensor) -> Iterator[Sequence[StoredImage]]:
        return self._parts[part].stored(rows)

    def breaks(self, part: Part) -> Tensor:
        return self._parts[part].breaks

    def where(self, part: Part) -> str:
        return self._parts[part].where

    def key(self, part: Part) -> str:
        return self._parts[part].key

    def _check_range(self, part: _PartFiles, column: str, origin: str) -> None:
        largest = int(part.labels.max())
        if largest >= len(self.class_names):
            raise DataError(
                f"{part.where}: column {column!r} has label {largest}, but there are {len(self.class_names)} classes "
                f"{origin} (labels 0 to {len(self.class_names) - 1})",
                key=part.key,
            )

    def _fingerprint(self, label_column: str) -> str:
        facts: dict[str, object] = {"source": "parquet", "label_column": label_column, "classes": self.class_names}
        for name, part in self._parts.items():
            facts[name] = {
                "image_column": part.image_column,
                "files": [[shard.name, shard.size, shard.footer_hash] for shard in part.shards],
                "labels": hashlib.sha256(part.labels.numpy().astype("<i8").tobytes()).hexdigest(),
            }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _between(rows: Array, first: int, count: int) -> Array:
    """Those of the ascending `rows` in first .. first + count - 1, counted from `first`."""
    start, end = np.searchsorted(rows, (first, first + count))
    return rows[start:end] - first


def _images(path: str, rows: list[int], column: Any) -> list[StoredImage]:
    """The images of a column's values, which are the file's `rows`."""
    images = []
    for row, value in zip(rows, column.to_pylist(), strict=True):
        content, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        place = f"{path}, row {row} ({name})" if name else f"{path}, row {row}"
        images.append(StoredImage(place, name, partial(_same, content)))
    return images


def _same(content: bytes | None) -> bytes | None:
    return content
