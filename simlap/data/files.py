"""Datasets of image files, one image each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from simlap.data.decode import Mend, decoded_squares
from simlap.data.hierarchy import Hierarchy
from simlap.data.source import Part, StoredImage

_CHUNK = 16  # photographs: some milliseconds each, and read by the thread that decodes them


@dataclass(frozen=True)
class ImageFile:
    """One file."""

    path: str
    name: str
    """Path relative to the dataset's folder."""
    size: int
    """Bytes."""
    label: int


class FileSource:
    """Image files of any size; grey ones become colour images."""

    channels = 3

    def __init__(
        self,
        name: str,
        parts: Mapping[Part, Sequence[ImageFile]],
        class_names: Sequence[str],
        *,
        read: Callable[[Part, str], bytes],
        where: Callable[[Part], str],
        key: Callable[[Part], str],
        hierarchy: Hierarchy | None = None,
    ) -> None:
        """Args:
        name: of the dataset.
        parts: files, at least one in each part.
        class_names: of the labels 0, 1, ...
        read: the bytes of a part's file at a path; raises OSError.
        where: the place of a part, for messages.
        key: the setting that leads to a part, for messages.
        hierarchy: of the classes.
        """
        self._files, self._read, self._where, self._key = dict(parts), read, where, key
        self._labels: dict[Part, Tensor] = {
            part: torch.tensor([file.label for file in files], dtype=torch.int64) for part, files in parts.items()
        }
        self.class_names, self.hierarchy = tuple(class_names), hierarchy
        self.fingerprint = self._hash(name)

    def labels(self, part: Part) -> Tensor:
        return self._labels[part]

    def images(self, part: Part, rows: Tensor, size: int, mend: Mend | None = None) -> Tensor:
        return decoded_squares(self, part, rows, size, mend)

    def stored(self, part: Part, rows: Tensor) -> Iterator[Sequence[StoredImage]]:
        files = self._files[part]
        for chunk in rows.split(_CHUNK):
            yield [
                StoredImage(files[row].path, files[row].name, partial(self._read, part, files[row].path))
                for row in chunk.tolist()
            ]

    def breaks(self, part: Part) -> None:
        return None

    def where(self, part: Part) -> str:
        return self._where(part)

    def key(self, part: Part) -> str:
        return self._key(part)

    def _hash(self, name: str) -> str:
        """Of names, sizes and labels: no file is read."""
        digest = hashlib.sha256(json.dumps([name, self.class_names]).encode())
        for part, files in sorted(self._files.items()):
            digest.update(f"\n{part}".encode())
            for file in files:
                digest.update(f"\n{file.name}\0{file.size}\0{file.label}".encode())
        return digest.hexdigest()
