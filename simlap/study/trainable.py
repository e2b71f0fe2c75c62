"""What Tune runs for a cell: an actor that stays warm for one-worker cells, a driver of a Train worker group for larger ones.

torch is imported where there is a cell to train: the launch, which names these classes to Tune, saves seconds.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Generator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from simlap.config.schema import Resources
from simlap.record.journal import cell_storage, next_attempt, read_rows, times_rerun
from simlap.record.provenance import code_facts
from simlap.record.view import PREEMPTED
from simlap.redact import hide_in_error
from simlap.run import preempt
from simlap.run.logs import CellLog
from simlap.run.task import STOP_REQUEST, CellTask
from simlap.storage import Storage
from simlap.study.plan import Plan
from simlap.study.planned import PlannedCell

if TYPE_CHECKING:
    from simlap.train import loop

_log = logging.getLogger("simlap.study")


def trial_config(
    plan: Plan, cell: PlannedCell, provenance: dict[str, Any], resources: Resources, workers: int
) -> dict[str, Any]:
    """Everything an actor, a driver or the scheduler is told about a cell: plain values, so that it travels.

    Args:
        plan: that the cell is of.
        cell: to be run.
        provenance: of this launch.
        resources: that the experiment is to have.
        workers: that it runs with this time.
    """
    metric = plan.study.spec.metric.name
    values = []
    if cell.facts.state != "new":
        view = cell.view
        values = [r.metrics[metric] for r in view.rows if r.epoch <= view.durable_epoch and metric in r.metrics]
    told = {**provenance, **code_facts(cell.stage.experiment), "data_fingerprint": cell.fingerprint}
    if again := times_rerun(cell_storage(plan.storage, cell.cell_id)):
        told["rerun"] = again
    task = CellTask(
        cell.cell_id,
        cell.experiment.model_copy(update={"resources": resources}).model_dump(mode="json"),
        plan.storage.uri,
        told,
        cell.start,
        cell.until,
    )
    return {
        "cell_id": cell.cell_id,
        "protected": cell.protected,
        "metric": metric,
        "last": values[-1] if values else None,
        "epochs": cell.experiment.train.epochs,
        "gpus": resources.gpus,
        "resources": resources.model_dump(),
        "workers": workers,
        "task": asdict(task),
    }


class CellTrainable(tune.Trainable):
    """A warm actor: one cell after another, an epoch a step.

    A cell that raises ends its actor: Tune keeps actors of trials without errors only. So no cell follows one that ran out of
    memory.
    """

    _epochs: Generator[loop.Progress] | None = None
    _printed: CellLog | None = None
    _at_work: preempt.AtWork | None = None

    def setup(self, config: dict[str, Any]) -> None:
        preempt.listen()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        import torch

        from simlap.run.worker import StopRequest, run_cell
        from simlap.train.world import World

        self._leave()
        task = CellTask(**config["cell"]["task"])
        gpu = config["cell"]["gpus"] > 0 and torch.cuda.is_available()
        self._metric = config["cell"]["metric"]
        self._last = config["cell"]["last"]
        self._end = config["cell"]["epochs"] if task.until is None else task.until
        self._cell_id = task.cell_id
        cell = cell_storage(Storage(task.storage), task.cell_id)
        self._printed = CellLog(cell, next_attempt(cell)).__enter__()  # until the cell is left
        self._at_work = preempt.AtWork().__enter__()  # likewise
        world = World(device=torch.device("cuda" if gpu else "cpu"))
        self._epochs = run_cell(task, world, StopRequest(task, world))

    def step(self) -> dict[str, Any]:
        """One epoch; the last one with the final evaluation."""
        try:
            result = self._step()
        except BaseException as error:
            traceback.print_exc()
            self._leave()
            hide_in_error(error)  # Tune and Ray keep it in files of theirs
            raise
        if result["done"]:
            self._leave()
        return result

    def _step(self) -> dict[str, Any]:
        assert self._epochs is not None
        progress = next(self._epochs)
        if self._metric in progress.metrics:
            self._last = progress.metrics[self._metric]
        seconds = progress.metrics.get("time/epoch_s")
        if progress.epoch >= self._end and not (progress.finished or progress.stopped):
            progress = next(self._epochs)  # what it does at its end, where it evaluates or pauses
        if progress.stopped and preempt.asked():
            raise preempt.PreemptedError(PREEMPTED)  # this process takes no other cell: it is about to end
        result = {"cell_id": self._cell_id, "epoch": progress.epoch, "done": progress.finished or progress.stopped}
        if seconds is not None:
            result["time/epoch_s"] = seconds
        if self._last is not None:
            # a cell that only had to be evaluated reports its last value again
            result[self._metric] = self._last
        return result

    def cleanup(self) -> None:
        self._leave()

    def _leave(self) -> None:
        """Let the cell before go, with the memory it holds; its last checkpoint is durable then."""
        epochs, self._epochs = self._epochs, None
        printed, self._printed = self._printed, None
        at_work, self._at_work = self._at_work, None
        try:
            if epochs is not None:
                epochs.close()
        except Exception:  # noqa: BLE001 - it is in that cell's journal, and not the next cell's fault
            _log.exception("cell %s could not be left in order", self._cell_id)
        finally:
            if at_work is not None:
                at_work.__exit__()
            if printed is not None:
                printed.__exit__(None, None, None)


def train_driver(config: dict[str, Any]) -> None:
    """A Tune trial that holds no CPU and runs a Train worker group."""
    from simlap.run.launch import trainer

    cell = config["cell"]
    resources, task = Resources(**cell["resources"]), CellTask(**cell["task"])
    trainer(task, resources, [TuneReportCallback()], workers=cell["workers"]).fit()
    folder = cell_storage(Storage(task.storage), task.cell_id)
    ended = read_rows(folder)[-1]
    if ended.get("reason") == PREEMPTED and not folder.exists(STOP_REQUEST):  # a worker's machine is, not the launch's
        raise preempt.PreemptedError(PREEMPTED)
