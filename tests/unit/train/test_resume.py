"""Interrupted equals uninterrupted, bit for bit: parameters, optimiser, metrics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from simlap.record.journal import cell_storage, read_cell, read_result, read_rows
from simlap.record.view import PAUSED
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.train.checkpoint import CheckpointStore
from simlap.train.world import World
from tests.tiny import tiny


def task(storage: Path, **changes: Any) -> CellTask:
    """9 steps an epoch."""
    return CellTask(
        "c", tiny(**{"data__fraction": 0.5, "train__batch_size": 64, **changes}).model_dump(mode="json"), str(storage)
    )


def stop_at(step: int) -> Callable[[], bool]:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > step

    return stop


def outcome(storage: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on interruptions."""
    cell = cell_storage(Storage(storage), "c")
    newest = CheckpointStore(cell.child("checkpoints")).newest()
    assert newest is not None
    view = read_cell(Storage(storage), "c")
    result = read_result(cell)
    assert result is not None
    folder = cell.local_path(f"checkpoints/{newest.path}")
    assert folder is not None
    return {
        "epoch": newest.epoch,
        "model": (folder / "model.safetensors").read_bytes(),
        "optimizer": (folder / "optimizer.safetensors").read_bytes(),
        "rows": [(row.epoch, {k: v for k, v in row.metrics.items() if not k.startswith("time/")}) for row in view.rows],
        "result": result["evaluations"],
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("undisturbed")
    *_, last = run_cell(task(path), World())
    assert last.finished
    return outcome(path)


@pytest.mark.parametrize("step", [0, 5, 9, 13, 26])
def test_stopped_between_steps(tmp_path: Path, undisturbed: dict[str, Any], step: int) -> None:
    *_, last = run_cell(task(tmp_path), World(), stop_at(step))
    assert last.stopped
    assert read_cell(Storage(tmp_path), "c").state == "interrupted"
    *_, last = run_cell(task(tmp_path), World())
    assert last.finished
    assert outcome(tmp_path) == undisturbed


def test_rare_checkpoints_replay_epochs_and_count_them_once(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    run = run_cell(task(tmp_path, checkpoint__every_epochs=3), World())
    assert next(run).epoch == 1
    assert next(run).epoch == 2
    run.close()
    assert read_cell(Storage(tmp_path), "c").durable_epoch == 0
    *_, last = run_cell(task(tmp_path), World())
    assert last.finished
    assert outcome(tmp_path) == undisturbed
    starts = [row["from_epoch"] for row in read_rows(cell_storage(Storage(tmp_path), "c")) if row["type"] == "start"]
    assert starts == [0, 0]


@pytest.mark.parametrize("every", [1, 3])
def test_paused_at_an_epoch(tmp_path: Path, undisturbed: dict[str, Any], every: int) -> None:
    """It stands at the end of that epoch, durable and not evaluated; asked again to come there it does nothing."""
    ours = task(tmp_path, checkpoint__every_epochs=every)
    for _ in range(2):
        *_, last = run_cell(replace(ours, until=2), World())
        assert (last.epoch, last.stopped, last.finished) == (2, True, False)
        view = read_cell(Storage(tmp_path), "c")
        assert (view.state, view.epoch, view.durable_epoch, view.reason) == ("interrupted", 2, 2, PAUSED)
        assert not cell_storage(Storage(tmp_path), "c").exists("result.json")
    *_, last = run_cell(ours, World())
    assert last.finished
    assert outcome(tmp_path) == undisturbed


def test_a_finished_run_is_only_evaluated(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    list(run_cell(task(tmp_path, evaluate=[{"kind": "probe"}]), World()))
    view = read_cell(Storage(tmp_path), "c")
    assert "test/knn_top1" not in view.result
    assert "val/knn_top1" not in view.rows[-1].metrics
    before = CheckpointStore(cell_storage(Storage(tmp_path), "c").child("checkpoints")).names()
    (only,) = run_cell(task(tmp_path), World())
    assert only.finished
    assert "test/probe_top1" not in only.metrics, "what is known is not computed again"
    assert CheckpointStore(cell_storage(Storage(tmp_path), "c").child("checkpoints")).names() == before
    wanted = tiny().model_dump(mode="json")["evaluate"]
    view = read_cell(Storage(tmp_path), "c", evaluate=wanted)
    assert outcome(tmp_path)["result"] == undisturbed["result"]
    assert view.rows[-1].metrics["val/knn_top1"] == dict(undisturbed["rows"])[3]["val/knn_top1"]


def test_each_protocol_keeps_its_own_numbers(tmp_path: Path) -> None:
    """Two studies may share a cell and measure it differently."""
    protocols = [{"kind": "knn", "temperature": t} for t in (0.07, 0.001)]
    for protocol in protocols:
        list(run_cell(task(tmp_path, evaluate=[protocol]), World()))
    found = [read_cell(Storage(tmp_path), "c", evaluate=[protocol]).result["test/knn_top1"] for protocol in protocols]
    assert found[0] != found[1]
    assert read_cell(Storage(tmp_path), "c", evaluate=[{"kind": "probe"}]).result == {}


def test_a_failing_run_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"train/.* is (nan|inf)"):
        list(run_cell(task(tmp_path, optim__lr=1e30, optim__name="sgd"), World()))
    view = read_cell(Storage(tmp_path), "c")
    assert view.state == "failed"
    assert "DivergedError" in (view.reason or "")
    assert "Traceback" in (view.error or "")


_KILLED = """
import json, os, signal, sys
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.train.world import World
steps = int(sys.argv[2])
def stop():
    global steps
    steps -= 1
    if steps < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return False
list(run_cell(CellTask(**json.loads(sys.argv[1])), World(), stop))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_a_random_step(tmp_path: Path, undisturbed: dict[str, Any], seed: int) -> None:
    import json
    import random

    step = random.Random(seed).randrange(27)
    argument = json.dumps(asdict(task(tmp_path)))
    killed = subprocess.run([sys.executable, "-c", _KILLED, argument, str(step)], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert read_cell(Storage(tmp_path), "c").state in ("running", "new")
    *_, last = run_cell(task(tmp_path), World())
    assert last.finished
    assert outcome(tmp_path) == undisturbed
