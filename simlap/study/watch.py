"""What Tune says about cells, turned into journal, events and the live view."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from simlap.record.journal import cell_storage, end_for_worker, next_attempt, read_cell
from simlap.record.view import CellState
from simlap.storage import Storage
from simlap.study.events import EventLog
from simlap.study.plan import Plan, PlannedCell
from simlap.study.progress import Progress
from simlap.study.schedule import ProtectedAsha

_log = logging.getLogger("simlap.study")


class StudyCallback(tune.Callback):
    """Watches the cells of one Tune run."""

    def __init__(
        self, plan: Plan, cells: Sequence[PlannedCell], progress: Progress, events: EventLog, scheduler: TrialScheduler
    ) -> None:
        self.plan, self.progress, self.events, self.scheduler = plan, progress, events, scheduler
        self.cells = {cell.cell_id: cell for cell in cells}
        self.placement_groups: dict[str, str] = {}
        self.attempts = {cell.cell_id: next_attempt(self._folder(cell)) for cell in cells}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks; nothing of this one is ever restored

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        cell = self._cell(trial)
        persist(lambda: self.events.write("cell_started", **cell.place, seed=cell.seed))
        self.progress.started(cell.cell_id)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        cell = self._cell(trial)
        if result.get("placement_group"):
            self.placement_groups[trial.trial_id] = result["placement_group"]
        if "epoch" in result:
            self.progress.reported(cell.cell_id, result["epoch"], result.get(self.plan.study.spec.metric.name))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        cell = self._cell(trial)
        self._reap(trial)
        view = read_cell(self.plan.storage, cell.cell_id, seed=cell.seed)
        reasons = self.scheduler.reasons if isinstance(self.scheduler, ProtectedAsha) else {}
        reason = reasons.get(cell.cell_id)
        if view.state == "done":
            persist(lambda: self.events.write("cell_done", **cell.place, epoch=view.epoch))
            self.progress.ended(cell.cell_id, "done")
        elif reason is not None:
            # the decision first: should this process die here, the next launch writes the end (`settle`)
            settings = self.plan.study.spec.scheduler.model_dump()
            fields = {**cell.place, "epoch": view.epoch, "reason": reason}
            persist(lambda: self.events.write("cell_stopped", scheduler=settings, **fields))
            persist(lambda: self._end(cell, "stopped", view.epoch, reason))
            self.progress.ended(cell.cell_id, "stopped")
        else:
            # Tune was told to stop: the cell goes on with the next launch
            self.progress.ended(cell.cell_id, "interrupted")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        cell = self._cell(trial)
        self._reap(trial)
        view = read_cell(self.plan.storage, cell.cell_id, seed=cell.seed)
        if view.state == "done":  # it had written its result; what failed came later
            self.on_trial_complete(iteration, trials, trial)
            return
        reason = view.reason
        if view.state != "failed" or next_attempt(self._folder(cell)) == self.attempts[cell.cell_id]:
            # the process died without a word: the journal has no end yet
            text = _error_text(trial)
            reason = text.splitlines()[-1]
            persist(lambda: self._end(cell, "failed", view.epoch, text.splitlines()[-1], text))
        persist(lambda: self.events.write("cell_failed", **cell.place, reason=reason))
        self.progress.ended(cell.cell_id, "failed", reason or "")

    def _cell(self, trial: Trial) -> PlannedCell:
        return self.cells[trial.config["cell"]["cell_id"]]

    def _folder(self, cell: PlannedCell) -> Storage:
        return cell_storage(self.plan.storage, cell.cell_id)

    def _end(self, cell: PlannedCell, state: CellState, epoch: int, reason: str, error: str | None = None) -> None:
        config = cell.experiment.model_dump(mode="json")
        attempt = self.attempts[cell.cell_id]
        end_for_worker(self._folder(cell), config, state, attempt=attempt, epoch=epoch, reason=reason, error=error)

    def _reap(self, trial: Trial) -> None:
        """Free the CPUs of a worker group whose driver Tune has ended: Train's own cleaner needs the dashboard."""
        group_id = self.placement_groups.pop(trial.trial_id, None)
        if group_id is None:
            return
        from ray._raylet import PlacementGroupID
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


def persist(write: Callable[[], None]) -> None:
    """A storage that hiccups must not end the study: Tune would kill every running cell."""
    for pause in (0.5, 2.0, None):
        try:
            write()
            return
        except OSError:
            if pause is None:
                _log.exception("the study's log could not be written; the next launch makes up for it")
                return
            time.sleep(pause)


def _error_text(trial: Trial) -> str:
    # `trial.get_error()` reads a copy that Tune has not made yet
    file = Path(trial.error_file) if trial.error_file else None
    if file is not None and file.exists():
        return file.read_text().strip() or "the process died"
    return "the process died"
