"""Run a plan with Ray Tune: the stages that cells start from, then the cells under the study's scheduler."""

from __future__ import annotations

import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import TrialScheduler

from simlap.config.schema import Resources
from simlap.record.journal import cell_storage, end_for_worker, next_attempt
from simlap.record.provenance import collect
from simlap.redact import names_a_secret
from simlap.run import preempt
from simlap.run.cluster import Node
from simlap.run.failures import Retries
from simlap.run.task import STOP_REQUEST
from simlap.study.budget import BudgetGuard
from simlap.study.claims import Claims
from simlap.study.demand import Demand
from simlap.study.events import EventLog, persist
from simlap.study.feed import CellFeed
from simlap.study.lease import BEAT_S
from simlap.study.packing import Packing
from simlap.study.plan import Plan
from simlap.study.planned import PlannedCell
from simlap.study.progress import Progress
from simlap.study.racelog import RaceLog
from simlap.study.rounds import Rounds
from simlap.study.schedule import InOrder, build_scheduler
from simlap.study.stages import broken_by, goes_on
from simlap.study.trainable import CellTrainable, train_driver, trial_config
from simlap.study.waiting import Attempt
from simlap.study.watch import StudyCallback


def run_plan(
    plan: Plan,
    *,
    progress: Progress,
    events: EventLog,
    retries: Retries | None = None,
    slots: Callable[[Resources], int] | None = None,
    claims: Claims | None = None,
    demand: Demand | None = None,
) -> bool:
    """Run everything that is pending. Returns False where something is left to run: the user interrupted, the budget
    (`plan.guard`) is spent, or another launch has taken the study over (`claims`); running cells are then left where they are.

    Stages come first, without the study's scheduler: every one runs to its end. What starts from one that fails is failed
    with its reason; all others go on.

    Args:
        plan: what is pending.
        progress: shown to the user.
        events: of the study.
        retries: what is tried again when it fails.
        slots: at most so many cells with such resources at a time (default: as many as fit).
        claims: against other launches that have the same cells.
        demand: told what the cluster is to have room for.
    """
    if plan.racing is not None:
        return _run_race(
            plan, progress=progress, events=events, retries=retries, slots=slots, claims=claims, demand=demand
        )
    # cell id -> why nothing can start from it; at first what failed in an earlier batch of this launch
    broken = {stage.cell_id: broken_by(stage, stage.view.reason) for stage in plan.stages if stage.action == "given_up"}
    tried: set[str] = set()

    def run(cells: Sequence[PlannedCell], scheduler: TrialScheduler) -> bool:
        return execute(
            plan, cells, scheduler=scheduler, progress=progress, events=events, retries=retries, slots=slots,
            claims=claims, demand=demand,
        )  # fmt: skip

    def startable(cells: Sequence[PlannedCell]) -> list[PlannedCell]:
        for cell in cells:
            if cell.start in broken and cell.action != "evaluate" and not goes_on(cell, plan.storage):
                broken[cell.cell_id] = broken[cell.start]
                _fail(plan, cell, broken[cell.start], progress, events)
        return [cell for cell in cells if cell.cell_id not in broken]

    for wave in plan.waves():
        stages = startable(wave)
        if stages and not run(stages, InOrder()):
            return False
        tried |= {cell.cell_id for cell in wave}
        plan = plan.reread(cell.cell_id for cell in stages)
        broken |= {
            stage.cell_id: broken_by(stage, stage.view.reason)
            for stage in plan.pending
            if stage.action == "failed" and stage.cell_id in tried - broken.keys()
        }
    cells = startable([cell for cell in plan.cells if cell.pending and cell.cell_id not in tried])
    return not cells or run(cells, build_scheduler(plan))


def _run_race(
    plan: Plan,
    *,
    progress: Progress,
    events: EventLog,
    retries: Retries | None,
    slots: Callable[[Resources], int] | None,
    claims: Claims | None,
    demand: Demand | None,
) -> bool:
    """Run a race, round by round, in one go of Tune: between two looks an actor stays warm. Returns as `run_plan`."""
    rounds = Rounds(
        plan,
        progress=progress,
        log=RaceLog(plan, events, claims),
        fail=lambda cell, reason: _fail(plan, cell, reason, progress, events),
        claims=claims,
    )
    if first := rounds():
        execute(
            plan, first, more=rounds, scheduler=InOrder(), progress=progress, events=events, retries=retries,
            slots=slots, claims=claims, demand=demand,
        )  # fmt: skip
    return rounds.finished


def execute(
    plan: Plan,
    cells: Sequence[PlannedCell],
    *,
    scheduler: TrialScheduler,
    progress: Progress,
    events: EventLog,
    retries: Retries | None = None,
    slots: Callable[[Resources], int] | int | None = None,
    trainable: type[CellTrainable] = CellTrainable,
    claims: Claims | None = None,
    demand: Demand | None = None,
    more: Callable[[], Sequence[PlannedCell]] | None = None,
) -> bool:
    """Run cells, whatever each of them asks for, as many side by side as fit. Returns False where some are left to run.

    One failing cell does not stop the others. One-worker cells run in warm, reused actors, larger ones through Ray Train.

    Args:
        plan: that the cells are of.
        cells: in the order in which they are to start.
        scheduler: decides which of them are stopped early.
        progress: shown to the user.
        events: of the study.
        retries: what is tried again when it fails.
        slots: at most so many at a time (with such resources), where less than fits.
        trainable: the actor that runs one-worker cells.
        claims: against other launches that have the same cells; what these are at work on is waited for.
        demand: told what the cluster is to have room for.
        more: asked for further cells when all before have ended; none: that was all.

    Raises:
        StorageFullError: nothing more can be recorded; what runs was ended where its newest checkpoint is.
    """
    provenance = collect()
    names = (f"simlap-{trainable.__name__}", "simlap-driver")
    tune.register_trainable(names[0], trainable)
    tune.register_trainable(names[1], train_driver)

    def make_config(attempt: Attempt) -> dict[str, Any]:
        folder = cell_storage(plan.storage, attempt.cell.cell_id)
        folder.delete(STOP_REQUEST)  # a launch before may have left it, or the attempt before
        attempt.number = next_attempt(folder)
        return trial_config(plan, attempt.cell, provenance, attempt.resources, attempt.holds.workers)

    feed = CellFeed(
        cells,
        nodes=_nodes,
        make_config=make_config,
        trainables=names,
        head=_head_resource(),
        limit=(lambda _: slots) if isinstance(slots, int) else slots,
        guard=plan.guard,
        claims=claims,
        packing=Packing((*plan.stages, *plan.cells)),
        demand=demand,
        more=more,
    )
    callback = StudyCallback(plan, feed, progress, events, scheduler, retries or Retries())
    _fit(plan, feed, callback, scheduler, names[0])
    # what was handed out and has not come to an end: the user interrupted
    while feed.held and not feed.attempts and not feed.is_ended and _comes_free(plan, feed):
        _fit(plan, feed, callback, scheduler, names[0])
    if feed.full is not None:
        raise feed.full
    finished = {"done", "stopped", "failed"}
    return all(progress.cells[cell.cell_id].state in finished for cell in cells)


def _fit(plan: Plan, feed: CellFeed, callback: StudyCallback, scheduler: TrialScheduler, name: str) -> None:
    """Run what waits, until nothing does, or the user, the budget or another launch ends it."""
    # Tune hands this process's AWS keys to actors as settings, which Ray writes into a log; nodes have keys of their own, or the
    # storage would have been refused
    class_cache.ENV_VARS_TO_PROPAGATE = {one for one in class_cache.ENV_VARS_TO_PROPAGATE if not names_a_secret(one)}
    with tempfile.TemporaryDirectory(prefix="simlap-tune-") as scratch:
        tuner = tune.Tuner(
            name,
            tune_config=tune.TuneConfig(search_alg=feed, scheduler=scheduler, reuse_actors=True),
            run_config=tune.RunConfig(
                name=f"{plan.study.name}-{uuid.uuid4().hex[:8]}",
                storage_path=scratch,
                callbacks=[callback],
                stop=_Over(plan.guard, feed, callback),
                verbose=0,
                failure_config=tune.FailureConfig(
                    max_failures=0
                ),  # what is tried again is decided by `failures.History`
            ),
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            tuner.fit()
        finally:
            signal.signal(signal.SIGINT, handler)  # Tune leaves its own behind


def _comes_free(plan: Plan, feed: CellFeed) -> bool:
    """Wait for other launches until one has left something to be run (True), or nothing is held any more: then whether more
    cells may follow. False too where the user interrupts, the budget is spent, or another launch has this study. Tune's own
    waiting could not be interrupted."""
    try:
        while not feed.is_void and not preempt.asked() and (plan.guard is None or not plan.guard.reached()):
            if feed.reclaim():
                return True
            if not feed.held:
                return feed.may_grow
            time.sleep(BEAT_S)
    except KeyboardInterrupt:
        return False
    return False


class _Over(tune.Stopper):
    """Ends the run when the budget is spent, the storage is full, or another launch has taken the study over. Asked often: it
    looks for a notice, and for what is hung, too."""

    def __init__(self, guard: BudgetGuard | None, feed: CellFeed, callback: StudyCallback | None = None) -> None:
        self._guard, self._feed, self._callback = guard, feed, callback

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it; nothing of it is ever restored

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self._feed.heed_notice()
        if self._callback is not None:
            self._callback.end_hung()
        return (
            self._feed.is_void
            or self._feed.full is not None
            or (self._guard is not None and self._guard.reached() is not None)
        )


def settle(plan: Plan) -> None:
    """Write the ends that an earlier launch decided on and did not live to write. (A race's: `racelog.record_race`.)"""
    if plan.racing is not None:
        return
    for cell in plan.cells:
        if cell.action == "stopped" and cell.facts.state != "stopped":
            folder = cell_storage(plan.storage, cell.cell_id)
            config = cell.experiment.model_dump(mode="json")
            reason = "stopped by the scheduler in an earlier launch"
            end_for_worker(folder, config, "stopped", attempt=1, epoch=cell.facts.epoch, reason=reason)


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


def _nodes() -> Mapping[str, Node]:
    """The nodes that are alive, by id."""
    return {
        node["NodeID"]: Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    }
