"""Which of the cells that wait is next: the first in the plan's order that there is room for, or that a node has to come for."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from simlap.config.schema import Resources
from simlap.run.cluster import Node
from simlap.run.elastic import SETTLE_S
from simlap.run.failures import History
from simlap.study.budget import BudgetGuard
from simlap.study.capacity import Capacity, Share
from simlap.study.planned import PlannedCell

PASSES = 8
"""So many smaller cells may start before one that waits for room; then all wait for it."""
_LOOK_S = 5.0
_GROW_AFTER_S = 10.0
"""So long a run with fewer workers is left alone after its start, at least: to grow means to start anew."""


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
    held: Share | None = None
    """What it was given, where it was handed out: fewer workers perhaps than its share."""
    since: float = 0.0
    """When it was handed out. Seconds of a monotonic clock."""
    growing: bool = False
    """Whether it was asked to save and stop, to go on with more workers."""
    not_before: float = 0.0
    """When it may be handed out again. Seconds of a monotonic clock; 0: at any time."""
    lost: bool = False
    """Whether it had workers and lost some: then it goes on with what is left rather than wait for others to end."""

    @property
    def asked(self) -> Resources:
        """As its experiment has them."""
        return self.cell.stage.experiment.resources

    @property
    def holds(self) -> Share:
        """What it was given, or is to have."""
        return self.held or self.share

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
        grow: asks a run that there is room for more workers of, which is reserved, to save and stop. Whether it could.
        demand: told now and then what all that runs and waits would hold, what runs first.
    """

    def __init__(
        self,
        nodes: Callable[[], Mapping[str, Node]],
        *,
        limit: Callable[[Resources], int] | None = None,
        guard: BudgetGuard | None = None,
        grow: Callable[[Attempt], bool] = lambda attempt: False,
        demand: Callable[[Sequence[Share], Sequence[Share]], None] | None = None,
    ) -> None:
        self._nodes, self._limit, self._guard = nodes, limit, guard
        self._grow, self._demand = grow, demand
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
        attempt.held, attempt.growing = None, False
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

        What may run with fewer workers begins so only where the nodes could not hold all of them, and waits for room otherwise;
        what has lost some goes on with what it can have now.
        """
        self._look()
        overtaken: list[Attempt] = []
        for first in sorted([*self._firsts(), *self._homeless.values()]):
            if first in self._homeless.values():
                if not self.capacity.has_place_for(first.share):
                    continue
            elif self._limit is not None and self._beside[first.asked] >= self._limit(first.asked):
                continue  # it waits for its like to end, not for room
            elif self._is_early(first):
                continue  # nor does this wait for room: for news of a node
            elif (held := self.capacity.take_most(trial_id, first.share, self._fewest(first))) is not None:
                for attempt in overtaken:
                    attempt.passed += 1
                return self._taken_as(trial_id, first, held)
            elif not self.capacity.has_place_for(first.share.smallest):
                # Ray would start no fewer workers than it is asked for, once there is room for some
                if first.share.fewest is None and all(first.share != one.share for one in self._homeless.values()):
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
        self.capacity.release(_more(trial_id))
        self._homeless.pop(trial_id, None)
        attempt = self._taken.pop(trial_id, None)
        if attempt is not None:
            self._beside[attempt.asked] -= 1
        return attempt

    def settle(self, attempt: Attempt) -> None:
        """A run that may go on with fewer workers has lost one: what it can have next is not known at once."""
        attempt.not_before, attempt.lost = time.monotonic() + SETTLE_S, True

    def _is_early(self, first: Attempt) -> bool:
        if first.not_before > time.monotonic():
            return True
        if first.not_before:
            first.not_before = 0.0
            self._see_nodes()
        return False

    def _fewest(self, first: Attempt) -> int:
        """How many workers it may be handed out with."""
        waits = not first.lost and self.capacity.has_place_for(first.share)
        return (first.share if waits else first.share.smallest).workers

    def _taken_as(self, trial_id: str, first: Attempt, held: Share | None = None) -> Attempt:
        self._taken[trial_id] = heapq.heappop(self._queues[first.share])
        self._beside[first.asked] += 1
        first.held, first.since = held, time.monotonic()
        return first

    def _see_nodes(self) -> None:
        self._looked, self.capacity.nodes = time.monotonic(), self._nodes()

    def _look(self) -> None:
        """Which nodes there are; where one has come for a cell, that is the first to have room there."""
        if time.monotonic() - self._looked > _LOOK_S:
            self._see_nodes()
            self._let_grow()
            if self._demand is not None:
                running = [attempt.holds for attempt in self._taken.values()]
                self._demand(running, [attempt.share for queue in self._queues.values() for attempt in queue])
        for trial_id, attempt in [*self._homeless.items()]:
            if self.capacity.take(trial_id, attempt.share):
                del self._homeless[trial_id]
                if self._guard is not None:
                    self._guard.started(attempt.cell, attempt.share.devices)

    def _let_grow(self) -> None:
        """Reserve what is free for runs that have fewer workers than they ask for, before others get it."""
        for trial_id, attempt in self._taken.items():
            if attempt.held is None or attempt.growing or time.monotonic() - attempt.since < _GROW_AFTER_S:
                continue
            missing = attempt.share.workers - attempt.held.workers
            if missing and self.capacity.take_most(_more(trial_id), attempt.share.of_workers(missing), 1) is not None:
                attempt.growing = self._grow(attempt)
                if not attempt.growing:
                    self.capacity.release(_more(trial_id))

    def _firsts(self) -> list[Attempt]:
        """The first of every size, in the plan's order. What the budget refuses is let go: it is left for a larger one."""
        for queue in self._queues.values():
            while queue and self._guard is not None and not self._guard.may_start(queue[0].cell):
                heapq.heappop(queue)
        return sorted(queue[0] for queue in self._queues.values() if queue)


def _more(trial_id: str) -> str:
    """Who holds the room that a run is to grow into."""
    return f"{trial_id} more"
