"""Run a plan with Ray Tune: the stages that cells start from, then the cells under the study's scheduler."""

from __future__ import annotations

import signal
import tempfile
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from simlap.config.schema import Resources
from simlap.record.journal import cell_storage, end_for_worker, next_attempt
from simlap.record.provenance import collect
from simlap.study.events import EventLog
from simlap.study.plan import Plan, PlannedCell
from simlap.study.progress import Progress
from simlap.study.schedule import build_scheduler
from simlap.study.stages import goes_on
from simlap.study.trainable import CellTrainable, train_driver, trial_config
from simlap.study.watch import StudyCallback, persist


def run_plan(plan: Plan, *, slots: Callable[[Resources], int], progress: Progress, events: EventLog) -> bool:
    """Run everything that is pending. Returns False where the user interrupted.

    Stages come first, without the study's scheduler: every one runs to its end. What starts from one that fails is failed
    with its reason; all others go on.

    Args:
        plan: what is pending.
        slots: how many cells with such resources fit at a time.
        progress: shown to the user.
        events: of the study.
    """
    broken: dict[str, str] = {}  # cell id -> why nothing can start from it
    tried: set[str] = set()

    def startable(cells: Sequence[PlannedCell]) -> list[PlannedCell]:
        for cell in cells:
            if cell.start in broken and cell.action != "evaluate" and not goes_on(cell, plan.storage):
                broken[cell.cell_id] = broken[cell.start]
                _fail(plan, cell, broken[cell.start], progress, events)
        return [cell for cell in cells if cell.cell_id not in broken]

    for wave in plan.waves():
        stages = startable(wave)
        for resources in {
            cell.experiment.resources.model_dump_json(): cell.experiment.resources for cell in stages
        }.values():
            alike = [cell for cell in stages if cell.experiment.resources == resources]
            count = slots(resources)
            if not execute(plan, alike, slots=count, scheduler=FIFOScheduler(), progress=progress, events=events):
                return False
        tried |= {cell.cell_id for cell in wave}
        plan = plan.reread(cell.cell_id for cell in stages)
        broken |= {
            stage.cell_id: f"{stage.line} · seed {stage.seed} ({stage.cell_id}), which it starts from, failed: "
            f"{stage.view.reason}"
            for stage in plan.pending
            if stage.action == "failed" and stage.cell_id in tried - broken.keys()
        }
    cells = startable([cell for cell in plan.cells if cell.pending and cell.cell_id not in tried])
    if not cells:
        return True
    count = slots(plan.study.base.resources)
    return execute(plan, cells, slots=count, scheduler=build_scheduler(plan), progress=progress, events=events)


def execute(
    plan: Plan,
    cells: Sequence[PlannedCell],
    *,
    slots: int,
    scheduler: TrialScheduler,
    progress: Progress,
    events: EventLog,
) -> bool:
    """Run cells that ask for the same resources. Returns False where the user interrupted.

    One failing cell does not stop the others. One-worker cells run in warm, reused actors, larger ones through Ray Train.
    """
    resources = cells[0].experiment.resources
    provenance = collect()
    if resources.workers == 1:
        trainable: Any = tune.with_resources(
            CellTrainable, {"cpu": resources.cpus_per_worker, "gpu": resources.gpus_per_worker}
        )
    else:
        # the driver holds no CPU, or workers would wait for what their own drivers hold
        trainable = tune.with_resources(train_driver, {_head_resource(): 0.001})
    callback = StudyCallback(plan, cells, progress, events, scheduler)
    with tempfile.TemporaryDirectory(prefix="simlap-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            param_space={"cell": tune.grid_search([trial_config(plan, cell, provenance) for cell in cells])},
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
    return all(progress.cells[cell.cell_id].state in finished for cell in cells)


def settle(plan: Plan) -> None:
    """Write the ends that an earlier launch decided on and did not live to write."""
    for cell in plan.cells:
        if cell.action == "stopped" and cell.view.state != "stopped":
            folder = cell_storage(plan.storage, cell.cell_id)
            config = cell.experiment.model_dump(mode="json")
            reason = "stopped by the scheduler in an earlier launch"
            end_for_worker(folder, config, "stopped", attempt=1, epoch=cell.view.epoch, reason=reason)


def _fail(plan: Plan, cell: PlannedCell, reason: str, progress: Progress, events: EventLog) -> None:
    """The end of a cell that cannot even start."""
    folder = cell_storage(plan.storage, cell.cell_id)
    config = cell.experiment.model_dump(mode="json")

    def end() -> None:
        attempt = next_attempt(folder)
        end_for_worker(folder, config, "failed", attempt=attempt, epoch=cell.view.epoch, reason=reason, error=reason)

    persist(end)
    persist(lambda: events.write("cell_failed", **cell.place, reason=reason))
    progress.ended(cell.cell_id, "failed", reason)


def _head_resource() -> str:
    """A resource that every cluster's head node has and that costs nothing."""
    return next(str(name) for name in ray.cluster_resources() if name.startswith("node:__internal_head__"))
