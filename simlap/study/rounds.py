"""The rounds of a race: which cells run next, once those before have all ended.

A round is what one look waits for: the stages that its cells start from, wave by wave, then the cells, as far as the look needs
them. Then everything is read again, the looks that are complete decide, and the next round begins. No cell runs ahead of a look:
it may be the one that makes it needless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from simlap.study.claims import Claims
from simlap.study.plan import Plan
from simlap.study.planned import Action, PlannedCell
from simlap.study.progress import Progress
from simlap.study.racelog import RaceLog
from simlap.study.racing import Racing, mark, stand
from simlap.study.stages import broken_by, goes_on, needed_stages
from simlap.study.stale import discard, emptied, with_users

Fail = Callable[[PlannedCell, str], None]
"""Ends a cell that cannot start, with a reason."""


class Rounds:
    """Asked for the next cells whenever all that were given have ended, in whatever way.

    Args:
        plan: of the study, as the launch found it.
        progress: shown to the user.
        log: of the race's decisions.
        fail: what is done with a cell whose stage has failed.
        claims: against other launches that have the same cells.
    """

    def __init__(
        self, plan: Plan, *, progress: Progress, log: RaceLog, fail: Fail, claims: Claims | None = None
    ) -> None:
        assert plan.racing is not None
        self._claims = claims
        self._plan, self._progress, self._log, self._fail = plan, progress, log, fail
        self._cells = {cell.cell_id: _open(cell) for cell in plan.cells}
        self._stages = {stage.cell_id: stage for stage in plan.stages}
        self._tried: set[str] = set()
        """Cells and stages that this launch has run, or could not start: what of them has failed stays so."""
        self._broken: dict[str, str] = {}
        """Why nothing can start from a stage."""
        self._given: list[PlannedCell] = []
        self._waves: list[list[PlannedCell]] | None = None
        """What is left of the round; None: it is over."""
        self.racing: Racing = plan.racing
        self.finished = False
        """Whether all is run that this launch was asked for."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles who feeds it; nothing of this is ever restored

    def __call__(self) -> list[PlannedCell]:
        """The next cells; none where the race is over, or cannot go on."""
        given, self._given = self._given, []
        for cell in given:
            self._reread(cell)
        if any(self._is_left(cell) for cell in given):
            return []  # the user interrupted, or the budget is spent
        while True:
            if self._waves is None and not self._begin():
                return []
            while self._waves:
                if batch := self._emptied(self._startable(self._waves.pop(0))):
                    self._given = batch
                    return batch
            self._waves = None

    def _begin(self) -> bool:
        """Look, and plan the next round. Returns whether there is one."""
        cells = [*self._cells.values()]
        lost = self._plan.tuning.hopeless if self._plan.tuning is not None else {}
        self.racing = stand(self._plan.study, cells, self._tried, lost)
        marked = mark(self.racing, cells, self._plan.uses.keys())
        stopped = self._log.write(self.racing, marked)
        self._progress.decided(self.racing, marked, stopped)
        for cell in stopped:
            self._cells[cell.cell_id] = _open(cell.reread())
        asked = self.racing.needed
        wanted = [cell for cell in marked if (cell.line, cell.seed) in asked and cell.pending]
        if not wanted:
            self.finished = True  # or what the look waits for is to be left alone
            return False
        self._waves = [*self._stage_waves(wanted), wanted]
        return True

    def _stage_waves(self, wanted: Sequence[PlannedCell]) -> list[list[PlannedCell]]:
        """The stages that these cells wait for: each wave needs only those before it."""
        chosen = {cell.cell_id for cell in wanted}
        every = [
            *(cell if cell.cell_id in chosen else replace(cell, selected=False) for cell in self._cells.values()),
            *self._stages.values(),
        ]
        needed = needed_stages(
            [cell for cell in every if cell.cell_id not in chosen] + list(wanted), self._plan.storage
        )
        again: dict[Action, Action] = {"given_up": "failed", "spared": "resume", "stopped": "resume", "done": "resume"}
        waiting = [
            replace(cell, selected=True, until=None, perhaps=False, action=again.get(cell.action, cell.action))
            for cell in every
            if cell.cell_id in needed and cell.cell_id not in self._tried | self._broken.keys()
        ]
        return [[c for c in waiting if c.level == level] for level in sorted({c.level for c in waiting})]

    def _startable(self, cells: Sequence[PlannedCell]) -> list[PlannedCell]:
        """Those whose stage has not failed; the others fail with its reason. What has run as a stage is not given again."""
        found = []
        for cell in cells:
            if cell.start in self._broken and cell.action != "evaluate" and not goes_on(cell, self._plan.storage):
                self._fail(cell, self._broken[cell.start])
                self._broken[cell.cell_id] = self._broken[cell.start]
                self._reread(cell)
            elif not (cell.cell_id in self._tried and self._ended(cell)):
                found.append(cell)
        return found

    def _emptied(self, cells: Sequence[PlannedCell]) -> list[PlannedCell]:
        """The cells as they are handed out. What is to be run anew loses what other code computed only now: the race might have
        ended without it."""
        every = (cell for cell in (*self._stages.values(), *self._cells.values()) if cell.selected)
        # as it is now: it may have gone with the stage that it started from
        again = with_users([cell for cell in cells if self._home(cell)[cell.cell_id].action == "rerun"], every)
        if again:
            discard(self._plan.storage, again, self._claims)
        for cell in again:
            home = self._home(cell)
            home[cell.cell_id] = emptied(home[cell.cell_id])
            self._progress.anew(cell.cell_id)
        return [emptied(cell) if cell.action == "rerun" else cell for cell in cells]

    def _reread(self, cell: PlannedCell) -> None:
        """Look at what a cell has come to."""
        now = _open(replace(cell.reread(), action="resume"))
        self._tried.add(cell.cell_id)
        home = self._home(cell)
        home[cell.cell_id] = replace(now, selected=home[cell.cell_id].selected, until=None)
        if now.facts.state == "failed" and cell.cell_id in self._plan.uses and cell.cell_id not in self._broken:
            self._broken[cell.cell_id] = broken_by(cell, now.facts.reason)

    def _home(self, cell: PlannedCell) -> dict[str, PlannedCell]:
        return self._cells if cell.arm is not None else self._stages

    def _ended(self, cell: PlannedCell) -> bool:
        return self._home(cell)[cell.cell_id].facts.state in ("done", "failed")

    def _is_left(self, given: PlannedCell) -> bool:
        """Whether it has not come as far as it was to."""
        if self._ended(given):
            return False
        return given.until is None or self._cells[given.cell_id].track[1] < given.until


def _open(cell: PlannedCell) -> PlannedCell:
    """A cell as it is without the race. That an attempt of this launch has failed for good is told by `tried`."""
    if cell.action in ("given_up", "stale", "rerun"):
        return cell
    actions: dict[str, Action] = {"new": "new", "failed": "failed"}
    action = actions.get(cell.facts.state, "resume")
    if cell.facts.state == "done":
        action = "evaluate" if cell.facts.evaluated is None and cell.arm is not None else "done"
    return replace(cell, action=action, perhaps=False)
