"""A cell in a Ray Train worker group."""

from __future__ import annotations

import math
import os
import tempfile
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray.train
import ray.train.torch
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from simlap.config.schema import Resources
from simlap.hung import hung_s
from simlap.record.journal import cell_storage, next_attempt
from simlap.redact import hide_in_error
from simlap.run import preempt
from simlap.run.cluster import has_dashboard
from simlap.run.logs import CellLog
from simlap.run.task import CellTask
from simlap.storage import Storage
from simlap.train.world import World

_START = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""How long a group may wait for room, of Train's environment."""
_STARTS = os.environ.get(_START)
_ELASTIC_START_S = 20
"""The same where there may be fewer workers: the room was there when they were counted, or a node has just gone."""


def train_worker(task: dict[str, Any]) -> None:
    """Runs in every worker of the group. Where somebody listens it reports to Train once an epoch, on all ranks alike."""
    import ray.util

    # Train's controller and a study's driver load this module, too, and have no use for what trains
    from simlap.run.worker import StopRequest, run_cell

    world = World.current(ray.train.torch.get_device())
    group = ray.util.get_current_placement_group()
    placement_group = group.id.hex() if group is not None else ""
    cell = CellTask(**task["cell"])

    def report(metrics: dict[str, Any]) -> None:
        if task["reports"]:
            ray.train.report({"placement_group": placement_group, **metrics})

    report({})  # before the first epoch: a driver that dies must not leave the group's CPUs taken
    stop = StopRequest(cell, world)
    with preempt.AtWork(), CellLog(cell_storage(Storage(cell.storage), cell.cell_id), task["attempt"], rank=world.rank):
        try:
            for progress in run_cell(cell, world, stop):
                facts = {"cell_id": cell.cell_id, "epoch": progress.epoch, "finished": progress.finished}
                report({**facts, **progress.metrics})
        except BaseException as error:
            traceback.print_exc()
            hide_in_error(error)  # Train and Ray keep it in files of theirs
            raise


class _Trainer(ray.train.torch.TorchTrainer):
    """Without the actors that a cell has no use for: each wakes up a hundred times a second beside the training.

    One hands out Ray Data's datasets. Another frees the placement group of a controller that has died, which it finds out
    from Ray's dashboard: without one it never can, and whenever a group ends it is waited for in vain for ten seconds. (What a
    study's driver leaves, the study frees; what a run leaves, Ray does, with its job.)
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback"} | (set() if has_dashboard() else {"PlacementGroupCleanerCallback"})
        every = super()._create_default_callbacks()  # type: ignore[misc]  # mypy sees the first version of Train here
        return [*(one for one in every if type(one).__name__ not in unused), _Listening()]


class _Listening(WorkerGroupCallback):
    """The training runs on a thread of its own, and signals are for the main one."""

    def after_worker_group_start(self, worker_group: Any) -> None:
        worker_group.execute(preempt.listen)


def trainer(
    task: CellTask, resources: Resources, callbacks: Sequence[Any] = (), *, workers: int | None = None
) -> ray.train.torch.TorchTrainer:
    """The trainer of one attempt. State lives in the cell's folder: Train keeps none, and its run name is never reused.

    Args:
        callbacks: Train's, told of every epoch. Without any the workers report nothing: the journal has it all.
        workers: Of this attempt; by default all. The next one may have others: that is decided between attempts, by who knows of
            other runs on the cluster, and not within one by Train (see `simlap.run.elastic`).
    """
    if resources.is_elastic:
        os.environ[_START] = str(_ELASTIC_START_S)
    elif _STARTS is None:
        os.environ.pop(_START, None)
    else:
        os.environ[_START] = _STARTS
    return _Trainer(
        train_worker,
        train_loop_config={
            "cell": asdict(task),
            "reports": bool(callbacks),
            "attempt": next_attempt(cell_storage(Storage(task.storage), task.cell_id)),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers or resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker}
            | ({"GPU": resources.gpus} if resources.gpus else {}),
        ),
        torch_config=ray.train.torch.TorchConfig(
            backend="nccl" if resources.gpus > 0 else "gloo",
            timeout_s=math.ceil(hung_s()),  # of workers for another one that does not come
        ),
        run_config=ray.train.RunConfig(
            name=f"{task.cell_id}-{uuid.uuid4().hex[:8]}",
            storage_path=tempfile.gettempdir() + "/simlap-train",
            callbacks=list(callbacks),
            # mypy sees the first version of Train here
            failure_config=ray.train.FailureConfig(
                max_failures=0,
                # a group that finds no room is started again by Train, but by us where another size may fit
                controller_failure_limit=0 if resources.is_elastic else 10,  # type: ignore[call-arg]
            ),
        ),
    )
