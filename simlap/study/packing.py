"""`gpus_per_worker: auto`: how large a share of a GPU a cell gets, from what cells like it have taken of one.

The first cell of a shape has a GPU to itself, and says how much of its memory it took (`simlap.run.device.peak_memory`). Later
ones get 1/n of a GPU, n being how many of them fit with a margin. A cell that does not fit after all gets a larger share as any
other, and so do those after it. Only one-worker cells share: NCCL does not connect two workers on one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from simlap.study.capacity import Share
from simlap.study.estimate import shape
from simlap.study.index import CellFacts
from simlap.study.planned import PlannedCell

MARGIN = 1.15
"""Times what was taken at most: the allocator's pieces lie otherwise the next time."""
CONTEXT = 700 * 2**20
"""Bytes that CUDA keeps for every process, which torch does not count."""
MOST = 16
"""So many cells share a GPU at most: the smallest ones wait for each other's kernels rather than for memory."""
_DIGITS = 10_000
"""Ray counts in ten-thousandths."""

Shape = tuple[object, ...]


def cells_per_gpu(peak: int, total: int) -> int:
    """How many cells fit on a GPU.

    Args:
        peak: bytes that one of them took at most.
        total: bytes of the GPU.
    """
    return max(1, min(MOST, int(total / (MARGIN * peak + CONTEXT))))


class Packing:
    """What is known of the shapes of a plan's cells.

    Args:
        cells: whose facts tell what finished ones took.
    """

    def __init__(self, cells: Iterable[PlannedCell] = ()) -> None:
        self._shapes: dict[int, Shape] = {}
        self._fitting: dict[Shape, int] = {}
        self._outgrown: dict[Shape, int] = {}
        for cell in cells:
            if is_auto(cell):
                self.learn(cell, cell.facts)

    def share(self, cell: PlannedCell) -> Share:
        """What the cell is to hold."""
        share = Share.of(cell.stage.experiment.resources)
        if not is_auto(cell):
            return share
        fitting = self._fitting.get(self._shape(cell), 1)
        return Share(share.workers, share.cpus, 1.0 if fitting == 1 else math.floor(_DIGITS / fitting) / _DIGITS)

    def learn(self, cell: PlannedCell, facts: CellFacts) -> bool:
        """Note what a finished cell took. Whether others of its shape are to have another share now."""
        if facts.gpu_peak is None or facts.gpu_total is None:
            return False
        key = self._shape(cell)
        fitting = min(cells_per_gpu(facts.gpu_peak, facts.gpu_total), self._outgrown.get(key, MOST))
        # of several of a shape the one that took most counts
        before = self._fitting.get(key)
        self._fitting[key] = fitting if before is None else min(before, fitting)
        return self._fitting[key] != (before or 1)

    def outgrew(self, cell: PlannedCell, share: Share) -> bool:
        """A cell did not fit and gets this share: those of its shape are to have no smaller one. Whether that changes theirs."""
        if not is_auto(cell):
            return False
        key = self._shape(cell)
        self._outgrown[key] = max(1, int(1 / share.gpus + 1e-9)) if share.gpus else 1
        before = self._fitting.get(key, 1)
        self._fitting[key] = min(before, self._outgrown[key])
        return self._fitting[key] != before

    def _shape(self, cell: PlannedCell) -> Shape:
        """What decides how much memory a cell takes."""
        if id(cell.stage) not in self._shapes:
            experiment = cell.stage.experiment
            protocols = tuple(protocol.model_dump_json() for protocol in experiment.evaluate)
            self._shapes[id(cell.stage)] = (*shape(experiment), protocols)
        return self._shapes[id(cell.stage)]


def is_auto(cell: PlannedCell) -> bool:
    """Whether the cell's share of a GPU is for us to find."""
    resources = cell.stage.experiment.resources
    return resources.gpus_per_worker == "auto" and resources.workers == 1
