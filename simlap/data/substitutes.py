"""What stands in for an image that cannot be decoded: the next one of its class.

So labels, class sizes, steps of an epoch and the order of images stay what they were planned to be, whatever is damaged,
however many workers there are, and wherever a run is resumed. Which image stands in depends on the data alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simlap.data.decode import DecodeError, decode_image
from simlap.data.source import Part, Source
from simlap.errors import DataError

_log = logging.getLogger("simlap.data")
_NAMED = 5


@dataclass(frozen=True, order=True)
class BadImage:
    """An image that cannot be decoded."""

    set: str
    """`train`, `val` or `test`."""
    row: int
    """In its part of the source."""
    place: str
    """File, or file and row."""
    reason: str
    """The decoder's words."""


class Substitutes:
    """Of one set of images. Threads may share it."""

    def __init__(
        self, source: Source, part: Part, rows: Tensor, labels: Tensor, *, name: str, max_share: float
    ) -> None:
        """Args:
        source: that the images are of.
        part: of the source.
        rows: int64 [n], ascending: those of the set.
        labels: int64 [n].
        name: of the set.
        max_share: of the n images that may be bad.
        """
        self.source, self.part, self.rows, self.labels = source, part, rows, labels
        self.name, self.max_share = name, max_share
        self._found: dict[int, BadImage] = {}
        self._lock = threading.Lock()

    @property
    def found(self) -> tuple[BadImage, ...]:
        """Those met so far, in order."""
        with self._lock:
            return tuple(sorted(self._found.values()))

    def mend(self, row: int, error: DecodeError) -> Tensor:
        """The image that stands in for the one at a row of the part: uint8 [c, h, w], in its own size.

        Raises DataError where none of its class can be decoded, where more are bad than may be, or where it was not the image's
        fault but the storage's.
        """
        self._note(row, error)
        same = self.rows[self.labels == self.labels[torch.searchsorted(self.rows, row)]]
        after = int(torch.searchsorted(same, row, right=True))
        for other in same.roll(-after).tolist():
            if other == row:
                break
            if other in self._found:
                continue
            try:
                return self._read(other)
            except DecodeError as fault:
                self._note(other, fault)
        raise DataError(
            f"no image of its class can stand in for {error}: none can be decoded", key=self.source.key(self.part)
        )

    def _read(self, row: int) -> Tensor:
        ((stored,),) = self.source.stored(self.part, torch.tensor([row]))
        return decode_image(stored, self.source.channels)

    def _note(self, row: int, error: DecodeError) -> None:
        if error.of_storage:
            raise DataError(str(error), key=self.source.key(self.part)) from error
        with self._lock:
            is_new = row not in self._found
            self._found[row] = BadImage(self.name, row, error.place, error.reason)
            bad = sorted(self._found.values())
        if is_new:
            _log.warning("%s cannot be decoded; the next image of its class stands in", error)
        check_share(bad, {self.name: len(self.rows)}, self.max_share, self.source.key(self.part))


def check_share(bad: Sequence[BadImage], sizes: dict[str, int], max_share: float, key: str) -> None:
    """Raise DataError where more of a set's images are bad than may be.

    Args:
        bad: those known, of one or several sets.
        sizes: number of images of each set.
        max_share: that may be bad, of each set.
        key: the setting that leads to them.
    """
    for name, size in sizes.items():
        mine = [image for image in bad if image.set == name]
        if len(mine) > max_share * size:
            first = "; ".join(f"{image.place}: {image.reason}" for image in mine[:_NAMED])
            more = "; ..." if len(mine) > _NAMED else ""
            raise DataError(
                f"{len(mine)} of the {size:,} images of the {name} set cannot be decoded, more than data.max_bad_share "
                f"({max_share:g}) allows: {first}{more} (`simlap data` lists all; repair or delete them, or raise "
                "data.max_bad_share)",
                key=key,
            )
