"""What Tune says about cells, turned into journal, events and the live view."""

from __future__ import annotations

import errno
import logging
import re
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from simlap.hung import hung_s
from simlap.record.journal import cell_storage, end_for_worker, next_attempt, read_cell
from simlap.record.view import PREEMPTED, CellState
from simlap.run.failures import Retries, classify
from simlap.run.task import GROWS, STOP_REQUEST
from simlap.storage import Storage, StorageFullError
from simlap.study.claims import Holder
from simlap.study.events import EventLog, persist
from simlap.study.feed import CellFeed
from simlap.study.index import CellFacts
from simlap.study.plan import Plan
from simlap.study.planned import PlannedCell
from simlap.study.progress import Progress
from simlap.study.silence import Silence
from simlap.study.waiting import Attempt

_log = logging.getLogger("simlap.study")
_FULL = re.compile(r"StorageFullError: no space left: (.*); make room")


class StudyCallback(tune.Callback):
    """Watches the cells of one Tune run."""

    def __init__(
        self,
        plan: Plan,
        feed: CellFeed,
        progress: Progress,
        events: EventLog,
        scheduler: TrialScheduler,
        retries: Retries,
    ) -> None:
        self.plan, self.feed, self.progress, self.events = plan, feed, progress, events
        self.scheduler, self.retries = scheduler, retries
        self.placement_groups: dict[str, str] = {}
        self._silence = Silence(hung_s())
        self._trials: dict[str, Trial] = {}
        feed.on_held, feed.on_elsewhere = self.on_held, self.on_elsewhere

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks; nothing of this one is ever restored

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        attempt = self._attempt(trial)
        cell = attempt.cell
        self._trials[trial.trial_id] = trial
        self._silence.began(cell.cell_id)
        persist(lambda: self.events.write("cell_started", **cell.place, seed=cell.seed))
        self.progress.started(cell.cell_id, attempt.holds.devices)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        cell = self._attempt(trial).cell
        self._silence.reported(cell.cell_id)
        if result.get("placement_group"):
            self.placement_groups[trial.trial_id] = result["placement_group"]
        if "epoch" in result:
            value = result.get(self.plan.study.spec.metric.name)
            self.progress.reported(cell.cell_id, result["epoch"], value, result.get("time/epoch_s"))
            self._note_promotion(cell)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self._left(trial):
            return
        attempt = self._over(trial)
        cell = attempt.cell
        view = read_cell(self.plan.storage, cell.cell_id, seed=cell.seed)
        reason = getattr(self.scheduler, "reasons", {}).get(cell.cell_id)
        if view.state == "done":
            persist(lambda: self.events.write("cell_done", **cell.place, epoch=view.epoch))
            self.feed.learn(attempt)
            self.progress.ended(cell.cell_id, "done")
        elif reason is not None:
            # the decision first: should this process die here, the next launch writes the end (`settle`)
            settings = self.plan.study.spec.scheduler.model_dump()
            fields = {**cell.place, "epoch": view.epoch, "reason": reason}
            persist(lambda: self.events.write("cell_stopped", scheduler=settings, **fields))
            persist(lambda: self._end(attempt, "stopped", view.epoch, reason))
            self.progress.ended(cell.cell_id, "stopped")
        elif cell.until is not None and view.durable_epoch >= cell.until:
            persist(lambda: self.events.write("cell_paused", **cell.place, epoch=view.epoch))
            self.progress.ended(cell.cell_id, "paused")
        elif attempt.growing and view.reason == GROWS and not self.feed.is_ended:
            had, of = attempt.holds.workers, attempt.share.workers
            persist(lambda: self.events.write("cell_resized", **cell.place, epoch=view.epoch, workers=had, of=of))
            self.progress.resized(cell.cell_id, had, of)
            self.feed.again(attempt, larger=False)
            return
        else:
            # Tune was told to stop, or the cell: it goes on with the next launch
            self.progress.ended(cell.cell_id, "interrupted")
            persist(lambda: self._folder(cell).delete(STOP_REQUEST))
        persist(lambda: self.feed.release(attempt))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self._left(trial):
            return
        attempt = self._attempt(trial)
        cell = attempt.cell
        view = read_cell(self.plan.storage, cell.cell_id, seed=cell.seed)
        if view.state == "done":  # it had written its result; what failed came later
            self.on_trial_complete(iteration, trials, trial)
            return
        self._over(trial)
        if "SupersededError" in _error_text(trial) and self.feed.lost(attempt):
            return
        reason, error = view.reason or "", view.error
        if classify(None, _error_text(trial)) == "no_space":
            # its journal is left as it is: the next launch goes on with it
            told = _FULL.search(_error_text(trial))
            self.feed.full = self.feed.full or StorageFullError(errno.ENOSPC, told[1] if told else reason)
            self.progress.ended(cell.cell_id, "interrupted")
            persist(lambda: self.feed.release(attempt))
            return
        preempted = view.reason == PREEMPTED and next_attempt(self._folder(cell)) > attempt.number
        if preempted:
            reason = PREEMPTED
        elif view.state != "failed" or next_attempt(self._folder(cell)) == attempt.number:
            # the process died without a word: the journal has no end yet
            error = _error_text(trial)
            reason = error.splitlines()[-1]
            persist(lambda: self._end(attempt, "failed", view.epoch, reason, error))
        kind = classify(reason, error)
        decision = attempt.history.decide(
            kind, view.durable_epoch, self.retries, can_grow=self.feed.can_grow(attempt)
        )  # fmt: skip
        facts = {"attempt": attempt.number, "failure": kind, "reason": reason}
        if decision.again:
            persist(lambda: self.events.write("cell_retried", **cell.place, **facts, why=decision.why))
            self.progress.retrying(cell.cell_id, kind, reason, decision.why)
            self.feed.again(attempt, larger=decision.larger, lost=kind == "lost")
        else:
            persist(lambda: self.events.write("cell_failed", **cell.place, **facts))
            persist(lambda: self.feed.release(attempt))
            self.progress.ended(cell.cell_id, "failed", reason, kind)

    def on_held(self, attempt: Attempt, holder: Holder) -> None:
        """Another launch is at work on a cell."""
        cell = attempt.cell
        persist(lambda: self.events.write("cell_held", **cell.place, by=str(holder)))
        self.progress.held(cell.cell_id, str(holder))

    def on_elsewhere(self, attempt: Attempt, facts: CellFacts) -> None:
        """Another launch has brought a cell to its end: done, or failed."""
        cell, metric = attempt.cell, self.plan.study.spec.metric.name
        if facts.state == "done":
            persist(lambda: self.events.write("cell_done", **cell.place, epoch=facts.epoch, elsewhere=True))
            if (prefill := getattr(self.scheduler, "prefill", None)) is not None:
                rows = read_cell(self.plan.storage, cell.cell_id, seed=cell.seed).rows
                values = {row.epoch: row.metrics[metric] for row in rows if metric in row.metrics}
                prefill(cell.cell_id, facts.epoch, values, pending=False)
            self.progress.reported(cell.cell_id, facts.epoch, facts.metrics.get(metric))
            self.progress.ended(cell.cell_id, "done")
        else:
            reason = facts.reason or "another launch gave it up"
            persist(lambda: self.events.write("cell_failed", **cell.place, reason=reason, elsewhere=True))
            self.progress.ended(cell.cell_id, "failed", reason)

    def _folder(self, cell: PlannedCell) -> Storage:
        return cell_storage(self.plan.storage, cell.cell_id)

    def _attempt(self, trial: Trial) -> Attempt:
        return self.feed.attempts[trial.trial_id]

    def end_hung(self) -> None:
        """Kill the processes of cells that have been silent for too long: Tune would wait for ever. They are tried again."""
        silent = self._silence.hung()
        for trial_id, attempt in self.feed.attempts.items() if silent else ():
            cell = attempt.cell
            actor = self._trials[trial_id].temporary_state.ray_actor if trial_id in self._trials else None
            if cell.cell_id not in silent or actor is None:
                continue
            try:
                trained = read_cell(self.plan.storage, cell.cell_id).epoch >= cell.stage.experiment.train.epochs
            except OSError as error:  # the storage may be what the cell waits for; Tune would kill all that runs
                _log.warning("%s: silent, and whether it has trained could not be read: %s", cell.cell_id, error)
                continue
            if trained:
                self._silence.ended(cell.cell_id)  # how long the last evaluation takes nobody knows
                continue
            self._silence.killed(cell.cell_id)
            _log.error("%s: silent for %.0f s, killed", cell.cell_id, silent[cell.cell_id])
            ray.kill(actor)

    def _over(self, trial: Trial) -> Attempt:
        self._reap(trial)
        self._trials.pop(trial.trial_id, None)
        attempt = self.feed.attempts.pop(trial.trial_id)
        self._silence.ended(attempt.cell.cell_id)
        return attempt

    def _left(self, trial: Trial) -> bool:
        """Whether another launch has taken the study over: what has become of the cell is that one's to say."""
        if not self.feed.is_void:
            return False
        attempt = self._over(trial)
        self.progress.ended(attempt.cell.cell_id, "interrupted")
        persist(lambda: self.feed.release(attempt))
        return True

    def _note_promotion(self, cell: PlannedCell) -> None:
        """Why a cell was let past a rung, where it met one: as worth knowing as why others were not."""
        promotions = getattr(self.scheduler, "promotions", None)
        reason = promotions.pop(cell.cell_id, None) if promotions else None
        if reason is not None:
            persist(lambda: self.events.write("cell_promoted", **cell.place, **reason))

    def _end(self, attempt: Attempt, state: CellState, epoch: int, reason: str, error: str | None = None) -> None:
        cell = attempt.cell
        folder, config = cell_storage(self.plan.storage, cell.cell_id), cell.experiment.model_dump(mode="json")
        end_for_worker(folder, config, state, attempt=attempt.number, epoch=epoch, reason=reason, error=error)

    def _reap(self, trial: Trial) -> None:
        """Free the CPUs of a worker group whose driver Tune has ended: Train's own cleaner needs the dashboard."""
        group_id = self.placement_groups.pop(trial.trial_id, None)
        if group_id is None:
            return
        from ray._raylet import PlacementGroupID
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


def _error_text(trial: Trial) -> str:
    # `trial.get_error()` reads a copy that Tune has not made yet
    file = Path(trial.error_file) if trial.error_file else None
    if file is not None and file.exists():
        return file.read_text().strip() or "the process died"
    return "the process died"
