"""Making room for what is run anew: a stale cell's numbers are discarded, and only then."""

from __future__ import annotations

from collections.abc import Sequence

from simlap.record.journal import cell_storage
from simlap.storage import Storage
from simlap.study.index import forget
from simlap.study.plan import Plan
from simlap.study.planned import PlannedCell

_IN_ORDER = ("checkpoints", "evaluations", "result.json", "journal", "logs", "provenance.json", "config.yaml")
"""A kill in between leaves a run that is stale still, or one that was never finished and has no checkpoint: both begin anew."""
_COUNT = "rerun.json"


def to_rerun(plan: Plan) -> list[PlannedCell]:
    """Stale cells and stages that this launch is asked to run anew."""
    return [cell for cell in plan.pending if cell.action == "rerun"]


def discard(storage: Storage, cells: Sequence[PlannedCell]) -> None:
    """Delete what these runs hold. Only for who holds the study."""
    forget(storage, (cell.cell_id for cell in cells))
    for cell in cells:
        folder = cell_storage(storage, cell.cell_id)
        folder.write_json(_COUNT, {"times": times_rerun(folder) + 1})
        for name in _IN_ORDER:
            folder.delete(name)


def times_rerun(cell: Storage) -> int:
    """How often a run was discarded and begun anew. MLflow then has a run for each time: what it was told stays told."""
    return int(cell.read_json(_COUNT)["times"]) if cell.exists(_COUNT) else 0
