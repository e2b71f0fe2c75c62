"""Which of the cells that wait is next: the first in the plan's order that there is room for, or that a node has to come for."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from simlap.config.schema import Resources
from simlap.run.cluster import Node
from simlap.run.failures import History
from simlap.study.budget import BudgetGuard
from simlap.study.capacity import Capacity, Share
from simlap.study.planned import PlannedCell

PASSES = 8
"""So many smaller cells may start before one that waits for room; then all wait for it."""
_LOOK_S = 5.0


@dataclass(eq=False)
class Attempt:
    """A cell that waits for room, or runs."""

    order: int
    cell: PlannedCell
    share: Share
    history: History = field(default_factory=History)
    passed: int = 0
    """How many were started before it that come after it."""
    number: int = 0
    """Its attempt's, in the journal: set when it is handed out."""

    @property
    def asked(self) -> Resources:
        """As its experiment has them."""
        return self.cell.stage.experiment.resources

    @property
    def resources(self) -> Resources:
        """What the run is told: the cap on a GPU's memory follows its share of it; nothing else changes with the share."""
        return self.asked.model_copy(update={"gpus_per_worker": self.share.gpus})

    def __lt__(self, other: Attempt) -> bool:
        return self.order < other.order


class Waiting:
    """The cells that wait, by their size, and the room that those have which were taken.

    Args:
        nodes: the alive nodes by id; asked now and then, for nodes come and go.
        limit: at most so many cells of such resources at a time (None: as many as fit).
        guard: of the study's budget.
    """

    def __init__(
        self,
        nodes: Callable[[], Mapping[str, Node]],
        *,
        limit: Callable[[Resources], int] | None = None,
        guard: BudgetGuard | None = None,
    ) -> None:
        self._nodes, self._limit, self._guard = nodes, limit, guard
        self._looked = time.monotonic()
        self.capacity = Capacity(nodes())
        self._queues: dict[Share, list[Attempt]] = {}
        self._taken: dict[str, Attempt] = {}
        """By trial id."""
        self._homeless: dict[str, Attempt] = {}
        """Those of them that no node has room for, however empty: Ray waits for one."""
        self._beside: Counter[Resources] = Counter()

    def __bool__(self) -> bool:
        return any(self._queues.values())

    @property
    def busy(self) -> bool:
        """Whether anything waits, or was taken and not released."""
        return bool(self._taken or self)

    def add(self, attempt: Attempt) -> None:
        """A cell is to be run."""
        heapq.heappush(self._queues.setdefault(attempt.share, []), attempt)

    def clear(self) -> list[Attempt]:
        """All that wait, which do so no more."""
        waiting = [attempt for queue in self._queues.values() for attempt in queue]
        self._queues.clear()
        return waiting

    def take(self, trial_id: str) -> Attempt | None:
        """The next one, with its room reserved; None where all wait. However many cells of one size there are, one is looked at.

        What does not fit on the nodes that are there now, however empty, is no reason for others to wait: it is handed out
        without any room, one of a size at a time, so that Ray asks for a node, or waits until one comes back. Once one has come,
        it is overtaken no more often than what waits here: Ray would place whatever is smaller first.
        """
        self._look()
        overtaken: list[Attempt] = []
        for first in sorted([*self._firsts(), *self._homeless.values()]):
            if first in self._homeless.values():
                if not self.capacity.has_place_for(first.share):
                    continue
            elif self._limit is not None and self._beside[first.asked] >= self._limit(first.asked):
                continue  # it waits for its like to end, not for room
            elif self.capacity.take(trial_id, first.share):
                for attempt in overtaken:
                    attempt.passed += 1
                return self._taken_as(trial_id, first)
            elif not self.capacity.has_place_for(first.share):
                if all(first.share != attempt.share for attempt in self._homeless.values()):
                    self._homeless[trial_id] = first
                    return self._taken_as(trial_id, first)
                continue
            overtaken.append(first)
            if first.passed >= PASSES:
                break
        return None

    def has_room(self, trial_id: str) -> bool:
        """Whether room is reserved for a cell that was taken."""
        return trial_id in self._taken and trial_id not in self._homeless

    def release(self, trial_id: str) -> Attempt | None:
        """Its room is free. The cell, where one was taken under this id."""
        self.capacity.release(trial_id)
        self._homeless.pop(trial_id, None)
        attempt = self._taken.pop(trial_id, None)
        if attempt is not None:
            self._beside[attempt.asked] -= 1
        return attempt

    def _taken_as(self, trial_id: str, first: Attempt) -> Attempt:
        self._taken[trial_id] = heapq.heappop(self._queues[first.share])
        self._beside[first.asked] += 1
        return first

    def _look(self) -> None:
        """Which nodes there are; where one has come for a cell, that is the first to have room there."""
        if time.monotonic() - self._looked > _LOOK_S:
            self._looked, self.capacity.nodes = time.monotonic(), self._nodes()
        for trial_id, attempt in [*self._homeless.items()]:
            if self.capacity.take(trial_id, attempt.share):
                del self._homeless[trial_id]
                if self._guard is not None:
                    self._guard.started(attempt.cell, attempt.share.devices)

    def _firsts(self) -> list[Attempt]:
        """The first of every size, in the plan's order. What the budget refuses is let go: it is left for a larger one."""
        for queue in self._queues.values():
            while queue and self._guard is not None and not self._guard.may_start(queue[0].cell):
                heapq.heappop(queue)
        return sorted(queue[0] for queue in self._queues.values() if queue)
