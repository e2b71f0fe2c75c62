"""The images of a run for which others stand in, as they are met: its list, and a word for the user."""

from __future__ import annotations

from typing import Any

import torch

from simlap.config.schema import Data
from simlap.data.splits import Splits
from simlap.data.substitutes import BadImage, check_share
from simlap.record.journal import Journal
from simlap.train.world import World

LIST = "bad_images.json"
"""In the run directory, where there are any."""


class BadImages:
    """Keeps the list. All workers must ask at the same time: each has met its own."""

    def __init__(self, splits: Splits, data: Data, world: World, journal: Journal | None) -> None:
        self._splits, self._data, self._world, self._journal = splits, data, world, journal
        self._known: set[BadImage] = set()
        self._met = 0
        if journal is not None and journal.cell.exists(LIST):  # what earlier attempts met counts
            self._known = {BadImage(**image) for image in journal.cell.read_json(LIST)["images"]}

    def look(self) -> None:
        """Write down what has come to be known. Raises DataError where that is too much for all workers together."""
        mine = self._splits.bad_images()
        if self._data.streaming is None and not mine:
            return  # they were decoded before, and alike on all workers
        is_new, self._met = len(mine) > self._met, len(mine)
        if not self._world.any(is_new):
            return
        every = _gathered(mine, self._world)
        check_share(sorted(every), self._splits.sizes, self._data.max_bad_share, "data.train")
        if self._journal is None or every <= self._known:
            return
        self._known |= every
        images = [vars(image) for image in sorted(self._known)]
        self._journal.cell.write_json(LIST, {"schema_version": 1, "images": images})
        counts = ", ".join(
            f"{sum(image.set == name for image in self._known)} of {size:,} {name}"
            for name, size in self._splits.sizes.items()
        )
        self._journal.warn(
            f"{len(images)} images cannot be decoded ({counts}); the next of its class stands in for each; they are listed in "
            f"{self._journal.cell.describe(LIST)}",
            about="images",
        )


def _gathered(mine: tuple[BadImage, ...], world: World) -> set[BadImage]:
    """What all workers have met."""
    if world.size == 1:
        return set(mine)
    found: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(found, mine)
    return {image for images in found for image in images}
