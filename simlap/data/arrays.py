"""Datasets that are small enough to lie in memory as arrays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from simlap.data.decode import Mend
from simlap.data.hierarchy import Hierarchy
from simlap.data.resize import fit_square
from simlap.data.source import ImageSet, Part, StoredImage

_CHUNK = 256


class ArraySource:
    """Images of one size, and their labels, in memory."""

    def __init__(
        self,
        name: str,
        parts: Mapping[Part, ImageSet],
        class_names: Sequence[str],
        *,
        where: Callable[[Part], str],
        key: str,
        fingerprint: str | None = None,
        hierarchy: Hierarchy | None = None,
    ) -> None:
        """Args:
        name: of the dataset.
        parts: images in the size they are stored in.
        class_names: of the labels 0, 1, ...
        where: the place of a part, for messages.
        key: the setting that leads to the data.
        fingerprint: default: a hash of names, labels and pixels, whatever files they came from.
        hierarchy: of the classes.
        """
        self._parts, self._where, self._key = dict(parts), where, key
        self.class_names = tuple(class_names)
        self.channels = int(self._parts["train"].images.shape[1])
        self.hierarchy = hierarchy
        self.fingerprint = fingerprint or self._hash(name)

    def labels(self, part: Part) -> Tensor:
        return self._parts[part].labels

    def images(self, part: Part, rows: Tensor, size: int, mend: Mend | None = None) -> Tensor:
        return fit_square(self._parts[part].images[rows], size)

    def stored(self, part: Part, rows: Tensor) -> Iterator[Sequence[StoredImage]]:
        images, where = self._parts[part].images, self._where(part)
        for chunk in rows.split(_CHUNK):
            yield [
                StoredImage(f"{where}, image {row}", None, partial(images.__getitem__, row)) for row in chunk.tolist()
            ]

    def breaks(self, part: Part) -> None:
        return None

    def where(self, part: Part) -> str:
        return self._where(part)

    def key(self, part: Part) -> str:
        return self._key

    def _hash(self, name: str) -> str:
        facts: dict[str, object] = {"source": name, "classes": self.class_names}
        for part, images in self._parts.items():
            digest = hashlib.sha256(images.labels.numpy().astype("<i8").tobytes())
            digest.update(images.images.contiguous().numpy().data)
            facts[part] = [list(images.images.shape), digest.hexdigest()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
