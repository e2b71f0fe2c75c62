"""What a study may take: device-hours, hours on the clock, cells. Counted over all its launches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from simlap.config.schema import Count, Positive, Strict
from simlap.study.events import launch_ms

if TYPE_CHECKING:
    from simlap.study.index import Index
    from simlap.study.planned import PlannedCell


_BEGUN = "cells begun"


class Budget(Strict):
    """What all launches of a study together may take. When it is reached, cells are left where they are, to be resumed."""

    device_hours: Positive | None = None
    """Hours of devices: of each worker its GPUs, as a share or several, or where it has none its CPUs as one device."""
    wall_hours: Positive | None = None
    """Hours that launches have been running."""
    cells: Count | None = None
    """Cells that the study may begin, trials of its search included; those that another study had run are free."""


@dataclass(frozen=True)
class Use:
    """What of one limit is used."""

    used: float
    limit: float
    what: str
    """In words."""

    def __str__(self) -> str:
        used = "0" if self.used < self.limit / 1000 else f"{self.used:.3g}" if self.used < 100 else f"{self.used:.0f}"
        return f"{used} of {self.limit:g} {self.what}"


def uses(budget: Budget, *, device_hours: float, wall_hours: float, cells: int) -> list[Use]:
    """What is used of every limit that is set."""
    found = (
        (device_hours, budget.device_hours, "device-hours"),
        (wall_hours, budget.wall_hours, "hours"),
        (cells, budget.cells, _BEGUN),
    )
    return [Use(used, limit, what) for used, limit, what in found if limit is not None]


@dataclass(frozen=True)
class Spending:
    """What launches have taken so far."""

    device_hours: float = 0.0
    """Of the epochs that count, of cells that this study began. What a kill made to be trained again is not in it."""
    wall_hours: float = 0.0
    """From each launch's first event to its last one."""
    cells: frozenset[str] = frozenset()
    """Ids of the arms' cells, and of searches' trials, that this study began."""


def spending(events: Sequence[dict[str, Any]], index: Index) -> Spending:
    """What the study has taken: from its events, and for device time from what the cells' journals hold."""
    begun: dict[str, bool] = {}
    firsts: dict[int, int] = {}
    taken: dict[int, float] = {}
    for event in events:
        launch = event["launch"]
        taken[launch] = max(taken.get(launch, 0.0), launch_ms(event, firsts.setdefault(launch, event["t"])))
        if event["type"] == "cell_started":
            begun[event["cell_id"]] = "stage" not in event
    seconds = sum(facts.device_s for facts in index.recall(begun))
    hours = sum(taken.values()) / 3.6e6
    return Spending(seconds / 3600, hours, frozenset(cell_id for cell_id, is_arms in begun.items() if is_arms))


@dataclass
class BudgetGuard:
    """Asked by whoever runs cells: before each (`may_start`), and now and then while they run (`reached`)."""

    budget: Budget
    spent: Spending
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    _running: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Cell id -> when it was started, the devices that it takes."""
    _device_s: float = 0.0
    """Of cells that this launch has ended."""
    _cells: set[str] = field(default_factory=set)
    """That this launch began, and none before it."""
    refused: str | None = None
    """In words: the number of cells, once one was not begun because of it."""

    def __post_init__(self) -> None:
        self._began = self.clock()

    def may_start(self, cell: PlannedCell) -> bool:
        """Whether there is room for (some of) this cell."""
        known = cell.arm is None or cell.cell_id in self.spent.cells or cell.cell_id in self._cells
        limit = self.budget.cells
        if not known and limit is not None and len(self.spent.cells) + len(self._cells) >= limit:
            self.refused = f"{limit} cells"
            return False
        return self.reached() is None

    def started(self, cell: PlannedCell, devices: float) -> None:
        """A cell takes so many devices from now on; 0: it waits for a node."""
        self._running[cell.cell_id] = (self.clock(), devices)
        if cell.arm is not None and cell.cell_id not in self.spent.cells:
            self._cells.add(cell.cell_id)

    def ended(self, cell_id: str) -> None:
        """It does not run any more, for whatever reason."""
        if cell_id in self._running:
            since, devices = self._running.pop(cell_id)
            self._device_s += (self.clock() - since) * devices

    def uses(self) -> list[Use]:
        """What is used of every limit. May be asked by the thread that draws, so it goes over copies."""
        now = self.clock()
        running = sum((now - since) * devices for since, devices in list(self._running.values()))
        return uses(
            self.budget,
            device_hours=self.spent.device_hours + (self._device_s + running) / 3600,
            wall_hours=self.spent.wall_hours + (now - self._began) / 3600,
            cells=len(self.spent.cells) + len(self._cells),
        )

    def reached(self) -> str | None:
        """What of the budget is used up, in words; None while there is some left. (Of the cells `may_start` decides.)"""
        return next((str(use) for use in self.uses() if use.what != _BEGUN and use.used >= use.limit), None)


def budget_left(budget: Budget, spent: Spending, hours: float | None, new: int) -> str | None:
    """Why what is pending does not fit, in words; None where it fits, as far as is known.

    Args:
        budget: of the study.
        spent: so far.
        hours: device-hours that the pending cells are estimated to take; None: unknown.
        new: how many cells the budget kept from being started.
    """
    reasons = []
    if budget.device_hours is not None and hours is not None and spent.device_hours + hours > budget.device_hours:
        left = max(0.0, budget.device_hours - spent.device_hours)
        reasons.append(f"about {hours:.2g} device-hours to run, {left:.2g} of {budget.device_hours:g} left")
    if new:
        reasons.append(f"{new} cells beyond the {budget.cells} that may begin")
    return "; ".join(reasons) or None
