"""Which cells fit side by side: what every node has, and what the running ones hold of it.

A worker group holds nothing of Ray's until all of its workers can be placed at once, so groups cannot lock each other up; but
one that waits for room would be overtaken for ever by smaller cells. So room is reserved here, for whole cells, before Tune is
told of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from simlap.config.schema import Resources
from simlap.run.cluster import Node

_ROUNDING = 1e-9


def devices(workers: int, gpus: float) -> float:
    """How many devices a run takes: what a device-hour is an hour of.

    Args:
        workers: of the run.
        gpus: of each of them, a share or several; 0: its CPUs are one device.
    """
    return workers * (gpus or 1.0)


@dataclass(frozen=True)
class Share:
    """What a cell holds: so many bundles, each on one node."""

    workers: int
    cpus: float
    gpus: float
    """Of one bundle; a fraction is of one GPU."""
    fewest: int | None = None
    """So many bundles do where there is no place for all; None: all are needed."""

    @classmethod
    def of(cls, resources: Resources) -> Share:
        fewest = resources.fewest if resources.is_elastic else None
        return cls(resources.workers, resources.cpus_per_worker, resources.gpus, fewest)

    @property
    def smallest(self) -> Share:
        """What it must have."""
        return self if self.fewest is None else self.of_workers(self.fewest)

    def of_workers(self, workers: int) -> Share:
        """So many bundles of this size, no fewer."""
        return Share(workers, self.cpus, self.gpus)

    @property
    def devices(self) -> float:
        return devices(self.workers, self.gpus)

    def larger(self, largest: Node) -> Share | None:
        """Twice the share of the device that it computes on, at most a whole one; None where it has that already.

        A cell without a GPU gets twice the CPUs' worth of the node's memory: fewer cells run beside it. How many threads it
        computes with stays, and so do its numbers.
        """
        if self.gpus:
            return replace(self, gpus=min(1.0, 2 * self.gpus)) if self.gpus < 1 else None
        cpus = min(2 * self.cpus, largest.cpus // self.workers)
        return replace(self, cpus=cpus) if cpus > self.cpus else None


@dataclass
class _Room:
    """What is free on one node."""

    cpus: float
    gpus: list[float]
    """Of each GPU."""

    def take(self, cpus: float, gpus: float) -> list[int] | None:
        """Take a bundle: the GPUs that it lies on; None where it does not fit."""
        if cpus > self.cpus + _ROUNDING:
            return None
        if 0 < gpus < 1:
            # on the fullest GPU that has room: whole ones stay whole for those who need them
            fitting = [i for i, free in enumerate(self.gpus) if free >= gpus - _ROUNDING]
            chosen = [min(fitting, key=self.gpus.__getitem__)] if fitting else None
        else:
            whole = [i for i, free in enumerate(self.gpus) if free >= 1 - _ROUNDING]
            chosen = whole[: math.ceil(gpus)] if len(whole) >= gpus else None
        if chosen is None:
            return None
        self.cpus -= cpus
        for gpu in chosen:
            self.gpus[gpu] -= min(gpus, 1.0)
        return chosen


@dataclass
class Capacity:
    """The nodes of a cluster, and what cells hold of them."""

    nodes: Mapping[str, Node]
    """By node id."""
    held: dict[str, tuple[Share, list[tuple[str, list[int]]]]] = field(default_factory=dict)
    """By holder: its share, and for each bundle the node and the GPUs there."""

    def take(self, holder: str, share: Share) -> bool:
        """Reserve all bundles of a cell, or nothing. Whether it fits."""
        return self.take_most(holder, share, share.workers) is not None

    def take_most(self, holder: str, share: Share, fewest: int) -> Share | None:
        """Reserve as many bundles as fit, all or at least the fewest; or nothing (None)."""
        rooms = self._rooms()
        placed: list[tuple[str, list[int]]] = []
        for _ in range(share.workers):
            for node_id in sorted(rooms, key=lambda node_id: (rooms[node_id].cpus, node_id)):
                gpus = rooms[node_id].take(share.cpus, share.gpus)
                if gpus is not None:
                    placed.append((node_id, gpus))
                    break
            else:
                break
        if len(placed) < fewest:
            return None
        held = share if len(placed) == share.workers else share.of_workers(len(placed))
        self.held[holder] = (held, placed)
        return held

    def has_place_for(self, share: Share) -> bool:
        """Whether the nodes could hold it if nothing else did."""
        return Capacity(self.nodes).take("", share)

    def release(self, holder: str) -> None:
        self.held.pop(holder, None)

    def largest(self) -> Node:
        """The node with the most CPUs."""
        return max(self.nodes.values(), key=lambda node: node.cpus, default=Node(0.0, 0.0))

    def _rooms(self) -> dict[str, _Room]:
        rooms = {node_id: _Room(node.cpus, [1.0] * int(node.gpus)) for node_id, node in self.nodes.items()}
        for share, placed in self.held.values():
            for node_id, gpus in placed:
                if (room := rooms.get(node_id)) is not None:  # else the node is gone, and its cells are about to fail
                    room.cpus -= share.cpus
                    for gpu in gpus:
                        room.gpus[gpu] -= min(share.gpus, 1.0)
        return rooms
