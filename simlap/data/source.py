"""What a dataset's source gives, before classes are chosen and the validation split is drawn."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor

from simlap.data.hierarchy import Hierarchy

if TYPE_CHECKING:
    from simlap.data.decode import Mend

Part = Literal["train", "test"]
PARTS: tuple[Part, Part] = ("train", "test")


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images and their labels. Here the images are decoded and in memory; `StreamedSet` decodes them when they are asked for."""

    images: Tensor
    """uint8 [n, c, h, w], all of them."""
    labels: Tensor
    """int64 [n]"""

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def subset(self, rows: Tensor) -> ImageSet:
        """The images at `rows` (int64), in that order."""
        return ImageSet(self.images[rows], self.labels[rows])

    def share(self, rank: int, size: int) -> ImageSet:
        """The images rank::size: a worker's part."""
        return ImageSet(self.images[rank::size], self.labels[rank::size])

    def batches(self, batch_size: int) -> Generator[Tensor, None, None]:
        """All images in order, uint8 [<= batch_size, c, h, w]. To be closed. Raises DataError where they cannot be read."""
        yield from self.images.split(batch_size)


@dataclass(frozen=True)
class StoredImage:
    """One image as its source holds it."""

    place: str
    """File, or file and row, for messages."""
    name: str | None
    """Its file's name inside the dataset, where it has one."""
    read: Callable[[], bytes | Tensor | None]
    """Gives the encoded file, uint8 [c, h, w], or None where there is nothing. May raise OSError."""


class Source(Protocol):
    """An opened dataset: labels are at hand, images are decoded on request."""

    class_names: tuple[str, ...]
    channels: int
    """Of the images."""
    fingerprint: str
    """Changes with the data, not with the folder it lies in."""
    hierarchy: Hierarchy | None
    """Of the classes, where the dataset itself has one."""

    def labels(self, part: Part) -> Tensor:
        """int64 [n]."""
        ...

    def images(self, part: Part, rows: Tensor, size: int, mend: Mend | None = None) -> Tensor:
        """The images at `rows` (int64 [m], each once, in any order) as squares: uint8 [m, c, size, size]. Raises DataError.

        `mend`: what stands in for one that cannot be decoded; without, it is an error.
        """
        ...

    def stored(self, part: Part, rows: Tensor) -> Iterator[Sequence[StoredImage]]:
        """The same as they are stored, `rows` ascending, in chunks of a size that suits a job. Raises DataError.

        Several threads may read at a time.
        """
        ...

    def breaks(self, part: Part) -> Tensor | None:
        """int64: rows that `stored` reads from without reading what lies before, ascending from 0; None: every one of them."""
        ...

    def where(self, part: Part) -> str:
        """The place of a part, for messages."""
        ...

    def key(self, part: Part) -> str:
        """The setting that leads to a part, for messages."""
        ...
