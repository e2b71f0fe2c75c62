"""One cell inside one process: the core loop with the journal, the checkpoints and the result around it.

The same code runs in a warm Tune actor (one worker) and in the workers of a Ray Train group.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Any, cast

import torch
from pydantic import TypeAdapter
from torch import Tensor

from simlap.config import Experiment, yaml
from simlap.config.schema import Data
from simlap.data.shared import shared_splits
from simlap.data.splits import Splits
from simlap.errors import DataError
from simlap.record.attempts import was_saved
from simlap.record.journal import (
    Journal,
    add_protocols,
    cell_storage,
    next_attempt,
    read_result,
    read_rows,
    times_rerun,
)
from simlap.record.view import PAUSED, PREEMPTED
from simlap.run import preempt
from simlap.run.bad_images import BadImages
from simlap.run.device import (
    explain_host_memory,
    explain_out_of_memory,
    is_host_memory,
    peak_memory,
    set_memory_share,
    set_threads,
)
from simlap.run.priority import normal_priority
from simlap.run.system import SystemMeter
from simlap.run.task import STOP_REQUEST, CellTask
from simlap.storage import Storage, StorageFullError
from simlap.train.checkpoint import CheckpointStore, find_checkpoint
from simlap.train.loop import Progress, fit
from simlap.train.weights import backbone_of, weights_fingerprint
from simlap.train.world import World

_log = logging.getLogger("simlap.worker")
RESULT_SCHEMA_VERSION = 1
_STOP_POLL_S, _STOP_POLL_ELSEWHERE_S = 1.0, 10.0
"""A look at an object store takes some of a step's time, and costs money."""
_ASKED = "asked to stop"


class SupersededError(RuntimeError):
    """A later attempt at the same cell has started; this one must not write any more."""


def check_newest(journal: Journal) -> None:
    """Raises SupersededError where a later attempt than the journal's has begun."""
    newest = next_attempt(journal.cell) - 1
    if newest > journal.attempt:
        raise SupersededError(f"attempt {newest} has taken over from attempt {journal.attempt}")


class _CellReporter:
    """Writes the journal and what evaluations leave, and collects their metrics; on rank 0 only."""

    def __init__(
        self, journal: Journal | None, provenance: dict[str, Any], meter: SystemMeter, store: CheckpointStore
    ) -> None:
        self.journal, self.provenance, self.meter, self.store = journal, provenance, meter, store
        self.evaluations: dict[str, dict[str, float]] = {}

    def start(self, epoch: int, step: int) -> None:
        if self.journal:
            where = f"{epoch} epochs" + (f" and {step} steps" if step else "")
            passed = [
                f"checkpoint {name} is not valid ({why}): the run went on from {where}"
                for name, why in self.store.damaged.items()
            ]
            self.journal.start(epoch, step, self.provenance, passed)

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        if self.journal:
            check_newest(self.journal)
            self.journal.epoch(epoch, metrics, self.meter.read())

    def evaluated(self, evaluation_id: str, metrics: dict[str, float], artefact: dict[str, Any] | None = None) -> None:
        self.evaluations[evaluation_id] = metrics
        if self.journal and artefact is not None:
            self.journal.cell.write_json(f"evaluations/{evaluation_id}.json", artefact)


class StopRequest:
    """Looks now and then whether the run is to save and stop; the loop tells the other workers.

    Asked by an object in the run directory (rank 0 looks for it), or by a notice to this very process.
    """

    def __init__(self, task: CellTask, world: World, *, every_s: float | None = None) -> None:
        self._cell, self._world = cell_storage(Storage(task.storage), task.cell_id), world
        usual = _STOP_POLL_S if self._cell.is_local else _STOP_POLL_ELSEWHERE_S
        self._every_s = usual if every_s is None else every_s
        self._looked = time.monotonic()
        self.reason = _ASKED

    def __call__(self) -> bool:
        if preempt.asked():
            self.reason = PREEMPTED
            return True
        if self._world.rank != 0 or time.monotonic() - self._looked < self._every_s:
            return False
        try:
            self.reason = self._cell.read(STOP_REQUEST).decode() or _ASKED
        except FileNotFoundError:
            return False
        except OSError as error:
            # of no consequence here: where the storage stays away, the journal's next row is an error
            _log.warning("whether to stop is not known: %s", error)
            return False
        finally:
            self._looked = time.monotonic()
        return True


def run_cell(task: CellTask, world: World, stop: Callable[[], bool] = lambda: False) -> Generator[Progress]:
    """Train and evaluate a cell from wherever it stands, yielding as `simlap.train.loop.fit` does.

    On success `result.json` is written, then the end of the journal. On an error the journal ends with it and it is raised.
    """
    experiment = task.parsed()
    set_threads(experiment.resources.cpus_per_worker)
    normal_priority()
    set_memory_share(world.device, experiment.resources.gpus)
    torch.backends.cudnn.deterministic = True
    cell = cell_storage(Storage(task.storage), task.cell_id)
    attempt = next_attempt(cell)
    journal = None
    result = read_result(cell)
    known: dict[str, dict[str, float]] = result["evaluations"] if result else {}
    provenance = {
        **task.provenance,
        "device": _device(world),
        "world_size": world.size,
        "gpus_per_worker": experiment.resources.gpus,
    }
    if task.start is not None:
        provenance["start"] = task.start
        if not task.start.startswith("weights:"):
            # should the stage be run anew, it is known from here that this run started from what it was before
            provenance["start_rerun"] = times_rerun(cell_storage(Storage(task.storage), task.start))
    if world.rank == 0:
        journal = Journal(cell, writer=f"{socket.gethostname()}.{os.getpid()}", attempt=attempt)
        if result is None:  # what only evaluates a finished run does not change where its weights came from
            cell.write("config.yaml", yaml.dump(task.experiment).encode())
            cell.write_json("provenance.json", provenance)
    store = CheckpointStore(cell.child("checkpoints"), keep=experiment.checkpoint.keep, attempt=attempt)
    reporter = _CellReporter(journal, provenance, SystemMeter(world.device), store)
    epoch = 0
    try:
        splits = _cached_splits(experiment.data.model_dump_json(), task.provenance.get("data_fingerprint"))
        bad = BadImages(splits, experiment.data, world, journal)
        if world.rank == 0 and attempt > 1 and not store.names():
            store.was_saved = was_saved(read_rows(cell))
        training = cast(
            "Generator[Progress]",
            fit(
                experiment,
                splits,
                world=world,
                store=store,
                reporter=reporter,
                stop=stop,
                known_evaluations=frozenset(known),
                start=_start(task, experiment, store),
                until=task.until,
            ),
        )
        with closing(training):  # a caller that goes away leaves when the last checkpoint is durable
            bad.look()
            for progress in training:
                epoch = progress.epoch
                bad.look()
                if progress.finished and journal:
                    check_newest(journal)  # or a run that its successor ends as well would end twice
                    _write_result(cell, progress, {**known, **reporter.evaluations}, _memory(result, world))
                    if result is not None:
                        add_protocols(cell, task.experiment["evaluate"])
                    journal.end("done", epoch)
                elif progress.stopped and (reason := _stopped_for(stop, world)) and journal:
                    paused = task.until is not None and epoch >= task.until
                    journal.end("interrupted", epoch, reason=PAUSED if paused else reason)
                yield progress
    except torch.OutOfMemoryError as error:
        explained = explain_out_of_memory(experiment, world.device, world.size)
        _end_failed(journal, epoch, explained, error)
        raise explained from error
    except StorageFullError as error:
        # not the run's fault: the same command goes on from the newest checkpoint, once there is room
        if journal:
            with suppress(StorageFullError):
                journal.end("interrupted", epoch, reason=f"{type(error).__name__}: {error}")
        raise
    except Exception as error:
        if is_host_memory(error):
            told = explain_host_memory(experiment, world.size)
            _end_failed(journal, epoch, told, error)
            raise told from error
        _end_failed(journal, epoch, error)
        raise


def _stopped_for(stop: Callable[[], bool], world: World) -> str:
    """Why, in words. All workers must come: the one that was told may be another one."""
    reason = stop.reason if isinstance(stop, StopRequest) else _ASKED
    return PREEMPTED if world.any(reason == PREEMPTED) else reason


def _end_failed(journal: Journal | None, epoch: int, error: Exception, cause: Exception | None = None) -> None:
    if journal:
        text = "".join(traceback.format_exception(cause or error))
        journal.end("failed", epoch, reason=f"{type(error).__name__}: {error}", error=text)


def _start(task: CellTask, experiment: Experiment, store: CheckpointStore) -> dict[str, Tensor] | None:
    """The backbone that a fresh run starts from; None where it starts from scratch, or goes on from a checkpoint of its own.

    Also None where the stage before is not there (any more): the loop complains of it.
    """
    if task.start is None or store.newest() is not None:
        return None
    weights = experiment.backbone.weights
    if weights is not None:
        found = f"weights:{weights_fingerprint(weights, experiment.backbone.key_prefix)}"
        if found != task.start:
            raise DataError(f"backbone.weights have changed since the run was planned: {found}, not {task.start}")
        return None  # the loop reads them
    stage = cell_storage(Storage(task.storage), task.start)
    if read_result(stage) is None:
        return None
    learnt = find_checkpoint(stage.uri)
    return backbone_of(learnt.model) if learnt is not None else None


def _memory(result: dict[str, Any] | None, world: World) -> dict[str, int] | None:
    """What the run took of its GPU at most; what only evaluates a finished run need not have taken as much as that did."""
    now, before = peak_memory(world.device), result.get("gpu_memory") if result else None
    return max((one for one in (now, before) if one), key=lambda one: one["peak"], default=None)


def _write_result(
    cell: Storage, progress: Progress, evaluations: dict[str, dict[str, float]], memory: dict[str, int] | None
) -> None:
    checkpoint = progress.checkpoint
    assert checkpoint is not None  # the last epoch is always saved
    cell.write_json(
        "result.json",
        {
            "schema_version": RESULT_SCHEMA_VERSION,
            "epochs": progress.epoch,
            "evaluations": evaluations,
            "checkpoint": {"path": f"checkpoints/{checkpoint.path}", "sha256": checkpoint.sha256},
            **({"gpu_memory": memory} if memory else {}),
        },
    )


@functools.lru_cache(maxsize=2)
def _cached_splits(data_json: str, fingerprint: str | None) -> Splits:
    """Mapped once per process: cells in a warm actor share it. It must be the data that the cell is named by."""
    data: Data = TypeAdapter(Data).validate_json(data_json)
    try:
        return shared_splits(data, fingerprint)
    except DataError as error:
        if error.key == "data.fingerprint" and data.fingerprint is None:
            raise DataError(f"the data has changed since the run was planned: {error}") from error
        raise


def _device(world: World) -> str:
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
