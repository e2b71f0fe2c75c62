"""What other code has computed: what is left of it as it is, and making room for what is run anew. A stale cell's numbers are
discarded then, and only then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from simlap.errors import UserError
from simlap.record.journal import RERUN, cell_storage, times_rerun
from simlap.storage import Storage
from simlap.study.claims import CLAIM, Claims
from simlap.study.index import CellFacts, forget
from simlap.study.plan import Plan
from simlap.study.planned import PlannedCell

_IN_ORDER = ("checkpoints", "evaluations", "result.json", "journal", "logs", "provenance.json", "config.yaml")
"""A kill in between leaves a run that is stale still, or one that was never finished and has no checkpoint: both begin anew."""


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


def unfinished(plan: Plan) -> set[str]:
    """Ids of runs that other code began, that the study wants more of, and that nothing goes on from by itself."""
    needed = plan.racing.needed if plan.racing is not None else None
    return {
        cell.cell_id
        for cell in (*plan.trials, *plan.cells)
        if cell.action == "stale" and cell.selected and cell.facts.state != "done"
        if (not cell.is_stopped if needed is None else (cell.line, cell.seed) in needed) or cell.trial is not None
    }


def left_behind(plan: Plan) -> str | None:
    """What other code has begun and did not finish, in words. None where there is nothing."""
    found = unfinished(plan) | plan.in_the_way
    if not found:
        return None
    waits = ", with what starts from them" if plan.in_the_way else ""
    told = (
        f"unfinished runs that other code began: {len(found)}, left as they are{waits}; `--rerun stale` runs them anew"
    )
    if claimed := sum(cell_storage(plan.storage, cell_id).exists(CLAIM) for cell_id in found):
        told += f". Another launch may be at work on {claimed} of them: let it end first"
    return told


def discard(storage: Storage, cells: Sequence[PlannedCell], claims: Claims | None = None) -> None:
    """Delete what these runs hold. Only for who holds the study. Raises UserError, before anything is deleted, where another
    launch is at work on one of them (`claims`)."""
    with _claimed(storage, cells, claims):
        forget(storage, (cell.cell_id for cell in cells))
        # what started from a stage goes before it, which is what tells that it is stale, should a kill come in between
        for cell in sorted(cells, key=lambda cell: -cell.level):
            folder = cell_storage(storage, cell.cell_id)
            folder.write_json(RERUN, {"times": times_rerun(folder) + 1})
            for name in _IN_ORDER:
                folder.delete(name)


@contextmanager
def _claimed(storage: Storage, cells: Sequence[PlannedCell], claims: Claims | None) -> Iterator[None]:
    """Have all of these cells, or none."""
    if claims is None:
        yield
        return
    taken: list[str] = []
    try:
        for cell in cells:
            if (holder := claims.take_from_dead(cell.cell_id)) is not None:
                raise UserError(
                    f"{cell.line} · seed {cell.seed} is to be run anew, and {holder} is at work on it: wait for that launch or "
                    "stop it, then run the same command",
                    file=storage.describe(f"cells/{cell.cell_id}/{CLAIM}"),
                )
            taken.append(cell.cell_id)
        yield
    finally:
        for cell_id in taken:
            claims.release(cell_id)


def emptied(cell: PlannedCell) -> PlannedCell:
    """A cell after `discard`."""
    return replace(cell, action="new", facts=CellFacts(), stale=False, perhaps=False)
