"""What a race decided, in the study's records: an event for each arm at each look, `race.json` as it stands, stops.

All of it follows from the journals and is written as far as it is missing, so a launch that dies between two writes leaves
nothing undone. `race.json` is what the report and MLflow read; the events keep what earlier versions of the file decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from simlap.record.journal import cell_storage, end_for_worker
from simlap.record.view import DECISIONS_SCHEMA_VERSION
from simlap.storage import Storage
from simlap.study.claims import Claims
from simlap.study.events import EventLog, persist, read_events, stopped_cells
from simlap.study.plan import Plan
from simlap.study.planned import PlannedCell
from simlap.study.racing import Racing
from simlap.study.standing import Decision, Look

Key = tuple[int, int | None, str]
"""Seeds and epochs of a look, and an arm."""


class RaceLog:
    """Writes what is missing.

    Args:
        plan: of the study, which its launch holds.
        events: of this launch (default: begun when there is something to be written).
        claims: against other launches that have the same cells.
    """

    def __init__(self, plan: Plan, events: EventLog | None = None, claims: Claims | None = None) -> None:
        self._plan, self._events, self._own, self._claims = plan, events, events is None, claims
        self._folder = plan.storage.child("studies", plan.study.name)
        written = read_events(self._folder)
        self._decided: dict[Key, dict[str, Any]] = {
            (event["seeds"], event["epochs"], event["arm"]): event
            for event in written
            if event["type"] == "race_decision"
        }
        self._stopped = stopped_cells(written, self._settings)

    @property
    def _settings(self) -> dict[str, Any]:
        return self._plan.study.spec.scheduler.model_dump()

    def write(self, racing: Racing, cells: Iterable[PlannedCell]) -> list[PlannedCell]:
        """Decisions first, then stops: the decision about a cell, then its end.

        Args:
            racing: as it stands.
            cells: of the arms, as the race has marked them.

        Returns:
            The cells that were stopped just now.
        """
        if self._claims is not None and self._claims.is_void:
            return []  # the race is another launch's
        # first: whoever follows the events finds it there
        persist(lambda: write_standing(self._folder, racing))
        for look in racing.standing.looks:
            for decision in look.decisions:
                self._decision(look, decision)
        stopped = [
            cell
            for cell in cells
            if cell.action == "stopped" and cell.facts.state != "stopped"
            if self._stop(cell, racing.standing.verdicts[cell.line].reason)
        ]
        if self._own and self._events is not None:
            self._events.close()
            self._events = None
        return stopped

    def _event(self, kind: str, **fields: Any) -> None:
        events = self._events = self._events or EventLog(self._folder)
        persist(lambda: events.write(kind, **fields))

    def _decision(self, look: Look, decision: Decision) -> None:
        key = (look.seeds, look.epochs, decision.arm)
        fields = {**_numbers(look, decision), "arm": decision.arm}
        earlier = self._decided.get(key, {})
        if any(name not in earlier or earlier[name] != value for name, value in fields.items()):
            self._event("race_decision", **fields)
            self._decided[key] = fields

    def _stop(self, cell: PlannedCell, reason: str) -> bool:
        """Write a cell's end, unless another study's launch is at work on it: the next launch of this one makes up for it."""
        if cell.cell_id not in self._stopped:
            fields = {**cell.place, "epoch": cell.facts.epoch, "reason": reason}
            self._event("cell_stopped", scheduler=self._settings, **fields)
            self._stopped[cell.cell_id] = reason
        if self._claims is not None and self._claims.holder(cell.cell_id) is not None:
            return False
        folder, config = cell_storage(cell.storage, cell.cell_id), cell.experiment.model_dump(mode="json")
        persist(lambda: end_for_worker(folder, config, "stopped", attempt=1, epoch=cell.facts.epoch, reason=reason))
        return True


def write_standing(study: Storage, racing: Racing) -> None:
    """Write `race.json`, as `simlap.record.view.RaceView` has it, unless it says so already."""
    arms = {}
    for arm in racing.entrants.epochs:
        found: dict[str, Any] = {"seeds": racing.seeds_of(arm), "decision": None}
        look = racing.last_look(arm)
        if look is not None:
            last = racing.standing.looks[look]
            decision = next((decision for decision in last.decisions if decision.arm == arm), None)
            if decision is not None:
                found["decision"] = _numbers(last, decision)
        arms[arm] = found
    rules = racing.rules
    content = {
        "schema_version": DECISIONS_SCHEMA_VERSION,
        "against": rules.against,
        "alpha": rules.alpha,
        "margin": rules.margin,
        "looks": list(rules.looks(len(racing.entrants.seeds))),
        "over": racing.over,
        "arms": arms,
    }
    try:
        if study.read_json("race.json") == content:
            return
    except (FileNotFoundError, ValueError):  # none yet, or not whole
        pass
    study.write_json("race.json", content)


def record_race(plan: Plan, claims: Claims | None = None) -> None:
    """Make up for what an earlier launch decided and did not live to write, and write what an edited file has decided."""
    if plan.racing is not None:
        RaceLog(plan, claims=claims).write(plan.racing, plan.cells)


def _numbers(look: Look, decision: Decision) -> dict[str, Any]:
    """A decision as JSON. Intervals are infinite where a look may not spend anything: null."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(decision).items()
        if name != "arm"
    }
    return {"seeds": look.seeds, "epochs": look.epochs, "spent": look.spent, "comparisons": look.comparisons, **plain}
