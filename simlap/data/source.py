"""What a dataset's source gives, before the validation split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Part = Literal["train", "test"]


@dataclass(frozen=True)
class ImageSet:
    """Decoded images and their labels."""

    images: Tensor
    """uint8 [n, c, h, w]"""
    labels: Tensor
    """int64 [n]"""

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: Tensor) -> ImageSet:
        """The images at `rows` (int64), in that order."""
        return ImageSet(self.images[rows], self.labels[rows])


class Source(Protocol):
    """An opened dataset: labels are at hand, images are decoded on request."""

    class_names: tuple[str, ...]
    fingerprint: str
    channels: int
    """Of the images."""

    def labels(self, part: Part) -> Tensor:
        """int64 [n]."""
        ...

    def images(self, part: Part) -> Tensor:
        """uint8 [n, c, s, s], s = `data.image_size`."""
        ...

    def where(self, part: Part) -> str:
        """The place of a part, for messages."""
        ...
