"""`simlap run`: one experiment through Ray Train, recorded."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from simlap.config import Experiment, validate
from simlap.errors import ConfigError, UserError
from simlap.record.journal import cell_storage, end_for_worker, next_attempt, read_cell
from simlap.record.mlflow import project_run
from simlap.record.provenance import code_facts, collect
from simlap.record.ship import ShipReport
from simlap.record.view import PREEMPTED, CellView, EpochRow
from simlap.redact import hide_credentials
from simlap.run import preempt
from simlap.run.cluster import alive_nodes, check_placement, connect, local_node
from simlap.run.elastic import SETTLE_S, Growth, workers_now
from simlap.run.failures import History, Retries, classify
from simlap.run.nodes import agree, unlike
from simlap.run.task import GROWS, STOP_REQUEST, CellTask
from simlap.storage import Storage
from simlap.train.check import check_experiment

POLL_S = 1.0
_REASON = 200
_FULL = re.compile(r"StorageFullError: .*")


@dataclass(frozen=True)
class PreparedRun:
    """A checked experiment and where it stands."""

    experiment: Experiment
    task: CellTask
    storage: Storage
    view: CellView

    @property
    def where(self) -> str:
        """Its run directory, in words."""
        return self.storage.describe(f"cells/{self.task.cell_id}")

    def read(self) -> CellView:
        """Where it stands now, with the results of its own protocols."""
        return read_cell(self.storage, self.task.cell_id, evaluate=self.task.experiment["evaluate"])


def reopen(storage: Storage, cell_id: str) -> PreparedRun:
    """A run that is there, from its own config."""
    view = read_cell(storage, cell_id)
    if view.state == "new":
        raise UserError(f"{storage.describe(f'cells/{cell_id}')}: there is no run")
    config = dict(view.config)
    return PreparedRun(validate(Experiment, config), CellTask(cell_id, config, storage.uri), storage, view)


def prepare(experiment: Experiment, storage: Storage, *, file: str, address: str | None) -> tuple[PreparedRun, ...]:
    """Check everything that can be checked without starting anything. Raises UserError.

    Returns:
        The experiment's stages in the order they run, itself last.
    """
    prepared: list[PreparedRun] = []
    for stage in check_experiment(experiment, file=file):
        resources = stage.experiment.resources
        if address is None:
            key = ".".join([*["pretrain"] * (len(experiment.stages) - 1 - len(prepared)), "resources"])
            check_placement(resources, [local_node()], file=file, key=key)
        provenance = {**collect(), **code_facts(stage.experiment), "data_fingerprint": stage.info.fingerprint}
        config = stage.experiment.model_dump(mode="json")
        task = CellTask(stage.cell_id, config, storage.uri, provenance, stage.start)
        view = read_cell(storage, stage.cell_id, seed=stage.experiment.seed, evaluate=config["evaluate"])
        prepared.append(PreparedRun(stage.experiment, task, storage, view))
    return tuple(prepared)


def execute(
    run: PreparedRun,
    *,
    file: str,
    address: str | None,
    on_epoch: Callable[[EpochRow], None],
    tell: Callable[[str], None] = lambda text: None,
) -> CellView:
    """Train with Ray Train from wherever the run stands. Returns what the journal holds afterwards.

    Where a worker, its node or the connection to it is lost, it goes on from the newest checkpoint, once there is room.
    Ctrl-C and SIGTERM ask the workers to save and stop; a second Ctrl-C leaves at once (the last epoch is safe all the same).
    Where its resources allow it, it goes on with fewer workers, and saves, stops and goes on with more when there is room.

    Args:
        run: what is trained.
        file: of the experiment, for errors.
        address: of a Ray cluster; None: this machine.
        on_epoch: shown every epoch that was recorded.
        tell: shown what was lost, and what is waited for.
    """
    check_placement(run.experiment.resources, connect(address, reports=False), file=file)
    if address is not None:
        agree(address, run.storage)
    history = History()
    seen, resources = run.view.epoch, run.experiment.resources
    workers = workers_now(resources)
    while True:

        def sound() -> bool:
            texts = unlike(run.storage) if address is not None else []
            if texts:
                tell("no more workers: " + "\n".join(texts))
            return not texts

        view, seen, asked, more = _attempt(run, seen, on_epoch, workers, sound)
        if view.state == "interrupted" and more and not asked:
            tell(f"stopped after epoch {view.epoch} to go on with {workers + more} of {resources.workers} workers")
            workers += more
            continue
        if view.state != "failed" or asked:
            return view
        decision = history.decide(
            classify(view.reason, view.error), view.durable_epoch, Retries(out_of_memory=0, other=0), can_grow=False
        )
        if not decision.again:
            return view
        tell(f"lost after epoch {view.epoch}: {_briefly(view.reason)}; going on from epoch {view.durable_epoch}")
        try:
            workers = _wait_for_room(run, file, tell)
        except KeyboardInterrupt:
            _stop_waiting(run, view)
            return run.read()
        if address is not None:
            agree(address, run.storage)  # a node that has come since was asked nothing yet


def _briefly(reason: str | None) -> str:
    """The first sentence: what Ray says of a dead process goes on with all that it could have died of."""
    text = (reason or "").partition(". ")[0]
    return text if len(text) <= _REASON else f"{text[: _REASON - 1]}…"


def _wait_for_room(run: PreparedRun, file: str, tell: Callable[[str], None]) -> int:
    """Until the nodes have room for all workers that it must have, were they empty: one that was lost may come back, or another
    one for it. Returns how many there are to be."""
    resources = run.experiment.resources
    began, told = time.monotonic(), False
    if resources.is_elastic:
        time.sleep(SETTLE_S)
    while True:
        try:
            check_placement(resources, alive_nodes(), file=file)
        except ConfigError as error:
            if not told:
                tell(f"waiting for nodes: {error}")
            told = True
            time.sleep(POLL_S)
        else:
            if told:
                tell(f"there is room again, after {time.monotonic() - began:.0f} s")
            workers = workers_now(resources)
            if workers < resources.workers:
                tell(f"going on with {workers} of {resources.workers} workers")
            return workers


def _stop_waiting(run: PreparedRun, view: CellView) -> None:
    """The user has interrupted while there was no attempt."""
    folder = cell_storage(run.storage, run.task.cell_id)
    config, attempt = run.task.experiment, next_attempt(folder) - 1
    reason = PREEMPTED if preempt.asked() else "asked to stop"
    end_for_worker(folder, config, "interrupted", attempt=attempt, epoch=view.epoch, reason=reason)


def _attempt(
    run: PreparedRun, seen: int, on_epoch: Callable[[EpochRow], None], workers: int, sound: Callable[[], bool]
) -> tuple[CellView, int, bool, int]:
    """One worker group, until it ends. Returns what the journal holds then, the last epoch that was shown, whether the user had
    asked it to stop, and how many more workers there was room for, for which it was."""
    # Train is slow to import
    from simlap.run.launch import trainer

    folder = cell_storage(run.storage, run.task.cell_id)
    folder.delete(STOP_REQUEST)
    attempt = next_attempt(folder)
    errors: list[Exception] = []
    ended = threading.Event()  # `join` would do, but an interrupted one takes the thread for dead (Python 3.11)

    def fit() -> None:
        try:
            trainer(run.task, run.experiment.resources, workers=workers).fit()
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which reports it
            errors.append(error)
        finally:
            ended.set()

    # in a thread of its own: on the main thread Train would take Ctrl-C for itself and kill the workers in mid-step
    thread = threading.Thread(target=fit, name="simlap-train", daemon=True)
    thread.start()
    growth = Growth(run.experiment.resources, workers, begun=lambda: next_attempt(folder) > attempt, sound=sound)
    asked, more = False, 0
    preempt.listen()
    try:
        with preempt.AtWork():
            while not ended.is_set():
                try:
                    ended.wait(POLL_S)
                    if preempt.asked() and not asked:
                        asked = True
                        folder.write(STOP_REQUEST, PREEMPTED.encode())
                    seen = _announce(run, seen, on_epoch)
                    if not (asked or more) and (more := growth.more()):
                        folder.write(STOP_REQUEST, GROWS.encode())
                except KeyboardInterrupt:
                    if asked:
                        raise
                    asked = True
                    folder.write(STOP_REQUEST, b"")
    finally:
        folder.delete(STOP_REQUEST)
    seen = _announce(run, seen, on_epoch)
    return _after(run, folder, attempt, errors), seen, asked, more


def _announce(run: PreparedRun, seen: int, on_epoch: Callable[[EpochRow], None]) -> int:
    for row in run.read().rows:
        if row.epoch > seen:
            seen = row.epoch
            on_epoch(row)
    return seen


def _after(run: PreparedRun, folder: Storage, attempt: int, errors: list[Exception]) -> CellView:
    view = run.read()
    newest = next_attempt(folder) - 1
    text = str(errors[0]).strip() if errors else "the worker group ended without a result"
    if full := _FULL.search(text):
        # nothing more can be written, and nothing is to be: the run goes on from what it has saved
        return replace(view, state="failed", reason=full[0], error=None)
    if view.state == "running" or (errors and newest < attempt):
        # the workers died without a word, or never started
        reason = text.splitlines()[-1]
        config = run.task.experiment
        end_for_worker(folder, config, "failed", attempt=attempt, epoch=view.epoch, reason=reason, error=text)
        view = run.read()
    return view


def record(run: PreparedRun, tracking_uri: str) -> ShipReport:
    """Bring MLflow up to date with the run. Errors are in the report: the journal holds everything, `simlap sync` catches up."""
    view = run.read()
    report = ShipReport()
    try:
        report.add(project_run(view, run.experiment.name, run.storage, tracking_uri))
    except Exception as error:  # noqa: BLE001 - whatever a server or its client can do must not fail a finished run
        report.errors = [hide_credentials(f"{type(error).__name__}: {error}")]
    return report
