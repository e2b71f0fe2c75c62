"""Run the pending cells of a plan with Ray Tune: one-worker cells in warm, reused actors, larger ones through Ray Train."""

from __future__ import annotations

import logging
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import TrialScheduler

from simlap.config.schema import Resources
from simlap.record.journal import cell_storage, end_for_worker, next_attempt, read_cell
from simlap.record.provenance import collect
from simlap.record.view import CellState
from simlap.run.launch import trainer
from simlap.run.worker import CellTask, run_cell
from simlap.storage import Storage
from simlap.study.events import EventLog
from simlap.study.plan import Plan, PlannedCell
from simlap.study.progress import Progress
from simlap.study.schedule import ProtectedAsha
from simlap.train import loop
from simlap.train.world import World

_log = logging.getLogger("simlap.study")


class CellTrainable(tune.Trainable):
    """A warm actor: one cell after another, an epoch a step."""

    _epochs: Iterator[loop.Progress] | None = None

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        task = CellTask(**config["cell"]["task"])
        gpu = config["cell"]["gpus"] > 0 and torch.cuda.is_available()
        self._metric = config["cell"]["metric"]
        self._last = config["cell"]["last"]
        self._total = config["cell"]["epochs"]
        self._cell_id = task.cell_id
        self._epochs = run_cell(task, World(device=torch.device("cuda" if gpu else "cpu")))

    def step(self) -> dict[str, Any]:
        """One epoch; the last one with the final evaluation."""
        assert self._epochs is not None
        progress = next(self._epochs)
        if self._metric in progress.metrics:
            self._last = progress.metrics[self._metric]
        if progress.epoch == self._total and not progress.finished:
            progress = next(self._epochs)
        result = {"cell_id": self._cell_id, "epoch": progress.epoch, "done": progress.finished}
        if self._last is not None:
            # a cell that only had to be evaluated reports its last value again
            result[self._metric] = self._last
        return result

    def cleanup(self) -> None:
        self._epochs = None


def train_driver(config: dict[str, Any]) -> None:
    """A Tune trial that holds no CPU and runs a Train worker group."""
    cell = config["cell"]
    resources = Resources(**cell["resources"])
    trainer(CellTask(**cell["task"]), resources, [TuneReportCallback()]).fit()


class _StudyCallback(tune.Callback):
    """Turns what Tune says into journal, events and the live view."""

    def __init__(self, plan: Plan, progress: Progress, events: EventLog, scheduler: TrialScheduler) -> None:
        self.plan, self.progress, self.events, self.scheduler = plan, progress, events, scheduler
        self.cells = {cell.cell_id: cell for cell in plan.cells}
        self.placement_groups: dict[str, str] = {}
        self.attempts = {cell.cell_id: next_attempt(self._folder(cell)) for cell in plan.pending}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks; nothing of this one is ever restored

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        cell = self._cell(trial)
        self._persist(
            lambda: self.events.write("cell_started", cell_id=cell.cell_id, arm=cell.arm.name, seed=cell.seed)
        )
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
            self._persist(
                lambda: self.events.write("cell_done", cell_id=cell.cell_id, arm=cell.arm.name, epoch=view.epoch)
            )
            self.progress.ended(cell.cell_id, "done")
        elif reason is not None:
            # the decision first: should this process die here, the next launch writes the end (`settle`)
            settings = self.plan.study.spec.scheduler.model_dump()
            fields = {"cell_id": cell.cell_id, "arm": cell.arm.name, "epoch": view.epoch, "reason": reason}
            self._persist(lambda: self.events.write("cell_stopped", scheduler=settings, **fields))
            self._persist(lambda: self._end(cell, "stopped", view.epoch, reason))
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
            self._persist(lambda: self._end(cell, "failed", view.epoch, text.splitlines()[-1], text))
        fields = {"cell_id": cell.cell_id, "arm": cell.arm.name, "reason": reason}
        self._persist(lambda: self.events.write("cell_failed", **fields))
        self.progress.ended(cell.cell_id, "failed", reason or "")

    def _cell(self, trial: Trial) -> PlannedCell:
        return self.cells[trial.config["cell"]["cell_id"]]

    def _folder(self, cell: PlannedCell) -> Storage:
        return cell_storage(self.plan.storage, cell.cell_id)

    def _end(self, cell: PlannedCell, state: CellState, epoch: int, reason: str, error: str | None = None) -> None:
        config = cell.experiment.model_dump(mode="json")
        attempt = self.attempts[cell.cell_id]
        end_for_worker(self._folder(cell), config, state, attempt=attempt, epoch=epoch, reason=reason, error=error)

    @staticmethod
    def _persist(write: Callable[[], None]) -> None:
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

    def _reap(self, trial: Trial) -> None:
        """Free the CPUs of a worker group whose driver Tune has ended: Train's own cleaner needs the dashboard."""
        group_id = self.placement_groups.pop(trial.trial_id, None)
        if group_id is None:
            return
        from ray._raylet import PlacementGroupID
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


def execute(plan: Plan, *, slots: int, scheduler: TrialScheduler, progress: Progress, events: EventLog) -> bool:
    """Run every pending cell. Returns False where the user interrupted. One failing cell does not stop the others."""
    resources = plan.study.base.resources
    metric = plan.study.spec.metric.name
    provenance = collect()
    cells = [
        {
            "cell_id": cell.cell_id,
            "protected": cell.arm.protected,
            "metric": metric,
            "last": next(
                (
                    r.metrics[metric]
                    for r in reversed(cell.view.rows)
                    if r.epoch <= cell.view.durable_epoch and metric in r.metrics
                ),
                None,
            ),
            "epochs": cell.experiment.train.epochs,
            "gpus": resources.gpus_per_worker,
            "resources": resources.model_dump(),
            "task": asdict(
                CellTask(
                    cell.cell_id,
                    cell.experiment.model_dump(mode="json"),
                    plan.storage.uri,
                    {**provenance, "data_fingerprint": cell.fingerprint},
                )
            ),
        }
        for cell in plan.pending
    ]
    if resources.workers == 1:
        trainable: Any = tune.with_resources(
            CellTrainable, {"cpu": resources.cpus_per_worker, "gpu": resources.gpus_per_worker}
        )
    else:
        # the driver holds no CPU, or workers would wait for what their own drivers hold
        trainable = tune.with_resources(train_driver, {_head_resource(): 0.001})
    callback = _StudyCallback(plan, progress, events, scheduler)
    with tempfile.TemporaryDirectory(prefix="simlap-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            param_space={"cell": tune.grid_search(cells)},
            tune_config=tune.TuneConfig(
                scheduler=scheduler,
                reuse_actors=resources.workers == 1,
                max_concurrent_trials=slots,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"{plan.study.name}-{uuid.uuid4().hex[:8]}",
                storage_path=scratch,
                callbacks=[callback],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False)
                if resources.workers == 1
                else None,
            ),
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            tuner.fit()
        finally:
            signal.signal(signal.SIGINT, handler)  # Tune leaves its own behind
    finished = {"done", "stopped", "failed"}
    return all(cell.state in finished for cell in progress.cells.values())


def settle(plan: Plan) -> None:
    """Write the ends that an earlier launch decided on and did not live to write."""
    for cell in plan.cells:
        if cell.action == "stopped" and cell.view.state != "stopped":
            folder = cell_storage(plan.storage, cell.cell_id)
            config = cell.experiment.model_dump(mode="json")
            reason = "stopped by the scheduler in an earlier launch"
            end_for_worker(folder, config, "stopped", attempt=1, epoch=cell.view.epoch, reason=reason)


def _error_text(trial: Trial) -> str:
    # `trial.get_error()` reads a copy that Tune has not made yet
    file = Path(trial.error_file) if trial.error_file else None
    if file is not None and file.exists():
        return file.read_text().strip() or "the process died"
    return "the process died"


def _head_resource() -> str:
    """A resource that every cluster's head node has and that costs nothing."""
    return next(str(name) for name in ray.cluster_resources() if name.startswith("node:__internal_head__"))
