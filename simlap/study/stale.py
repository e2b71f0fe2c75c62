"""What other code has computed: what is left of it as it is, and making room for what is run anew. A stale cell's numbers are
discarded then, and only then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from simlap.record.journal import cell_storage
from simlap.storage import Storage
from simlap.study.index import CellFacts, forget
from simlap.study.plan import Plan
from simlap.study.planned import PlannedCell

_IN_ORDER = ("checkpoints", "evaluations", "result.json", "journal", "logs", "provenance.json", "config.yaml")
"""A kill in between leaves a run that is stale still, or one that was never finished and has no checkpoint: both begin anew."""
_COUNT = "rerun.json"


def to_rerun(plan: Plan) -> list[PlannedCell]:
    """Stale cells and stages that this launch will run anew. Those that a race may come to need keep their results until it
    does (`simlap.study.rounds`)."""
    return with_users([cell for cell in plan.pending if cell.action == "rerun" and not cell.perhaps], plan.pending)


def with_users(cells: Sequence[PlannedCell], everything: Iterable[PlannedCell]) -> list[PlannedCell]:
    """These runs, and those among `everything` that are stale for nothing but having started from them: once a stage has been run
    anew, nobody could tell that they started from what it was before."""
    found = {cell.cell_id: cell for cell in cells}
    others = [cell for cell in everything if cell.action == "rerun" and not cell.stale and cell.cell_id not in found]
    while more := [cell for cell in others if cell.start in found and cell.cell_id not in found]:
        found |= {cell.cell_id: cell for cell in more}
    return [*found.values()]


def left_behind(plan: Plan) -> str | None:
    """What other code has begun and did not finish, in words: nothing goes on from it by itself. None where there is nothing."""
    needed = plan.racing.needed if plan.racing is not None else None
    cells = [
        cell
        for cell in (*plan.trials, *plan.cells)
        if cell.action == "stale" and cell.selected and cell.facts.state not in ("done", "stopped")
        if needed is None or cell.trial is not None or (cell.line, cell.seed) in needed
    ]
    count = len({cell.cell_id for cell in cells} | plan.in_the_way)
    if not count:
        return None
    waits = ", with what starts from them" if plan.in_the_way else ""
    return f"unfinished runs that other code began: {count}, left as they are{waits}; `--rerun stale` runs them anew"


def discard(storage: Storage, cells: Sequence[PlannedCell]) -> None:
    """Delete what these runs hold. Only for who holds the study."""
    forget(storage, (cell.cell_id for cell in cells))
    for cell in cells:
        folder = cell_storage(storage, cell.cell_id)
        folder.write_json(_COUNT, {"times": times_rerun(folder) + 1})
        for name in _IN_ORDER:
            folder.delete(name)


def emptied(cell: PlannedCell) -> PlannedCell:
    """A cell after `discard`."""
    return replace(cell, action="new", facts=CellFacts(), stale=False, perhaps=False)


def times_rerun(cell: Storage) -> int:
    """How often a run was discarded and begun anew. MLflow then has a run for each time: what it was told stays told."""
    return int(cell.read_json(_COUNT)["times"]) if cell.exists(_COUNT) else 0
