"""Several processes that write one study at the same time: one run per cell, whoever comes first."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from simlap.record.journal import Journal, read_study
from simlap.record.mlflow import StudyProjector, needs_projection
from simlap.record.ship import Shipper, ship_once
from simlap.record.tracking.lock import projection_lock
from simlap.record.tracking.writer import Writer
from simlap.storage import Storage
from tests.integration.mlflow_studies import study, train, write_checkpoints, write_plan


def runs(uri: str, name: str) -> list[str]:
    """Key of every run that is there."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    tags = [run.data.tags for run in client.search_runs([experiment.experiment_id], max_results=1000)]
    return sorted(t.get("simlap.cell_id") or t.get("simlap.arm") or t["simlap.kind"] for t in tags)


def keys(view: Any) -> list[str]:
    return sorted(["study", *(arm.name for arm in view.arms), *(c.cell_id for arm in view.arms for c in arm.cells)])


@pytest.mark.slow
def test_two_processes_that_race_make_every_run_once(tmp_path: Path) -> None:
    """Both follow from an empty store; the driver of a third has just been killed, so that it sends what is left."""
    storage, view, uri = Storage(tmp_path / "runs"), study(seeds=3, epochs=3), f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(uri).search_experiments()
    write_plan(storage, view)
    write_checkpoints(storage, view)
    journals: dict[str, Journal] = {}
    train(storage, view, 1, journals)
    command = [sys.executable, "-m", "simlap.record.ship", "--storage", storage.uri, "--study", view.name]
    command += ["--tracking-uri", uri, "--follow", "--poll", "0.05"]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    time.sleep(6.0)
    for epoch in (2, 3):
        train(storage, view, epoch, journals)
        time.sleep(1.0)
    reports = [json.loads(process.communicate(timeout=600)[0].splitlines()[-1]) for process in processes]
    assert [report["errors"] for report in reports] == [[], []]
    assert runs(uri, view.name) == keys(view)
    assert sum(report["created"] for report in reports) == len(keys(view))
    assert not needs_projection(read_study(storage, view.name), storage, uri)


@pytest.mark.slow
def test_a_process_that_was_killed_releases_the_lock_and_its_runs_are_found(tmp_path: Path) -> None:
    storage, view, uri = Storage(tmp_path / "runs"), study(seeds=3, epochs=2), f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(uri).search_experiments()
    write_plan(storage, view)
    write_checkpoints(storage, view)
    journals: dict[str, Journal] = {}
    for epoch in (1, 2):
        train(storage, view, epoch, journals)
    command = [sys.executable, "-m", "simlap.record.ship", "--storage", storage.uri, "--study", view.name]
    process = subprocess.Popen([*command, "--tracking-uri", uri], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "runs/studies/filter/mlflow").glob("*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    report = ship_once(storage, view.name, uri)
    assert report.errors == []
    assert runs(uri, view.name) == keys(view)


def test_a_run_made_since_the_look_up_is_taken_over(tmp_path: Path) -> None:
    """What was made by a process that died before it saved its cursor, or on another machine."""
    storage, view, uri = Storage(tmp_path / "runs"), study(levels=("on",)), f"sqlite:///{tmp_path}/mlflow.db"
    projector = StudyProjector(storage, uri, view.name)
    projector.project(study(levels=("on",), reached=0))
    elsewhere = Storage(tmp_path / "elsewhere")  # has another cursor and another lock
    assert StudyProjector(elsewhere, uri, view.name).project(study(levels=("on",), reached=1)).created == 2
    assert projector.project(view).created == 0
    assert runs(uri, view.name) == keys(view)


def test_another_process_s_cursor_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, view, uri = Storage(tmp_path / "runs"), study(levels=("on",)), f"sqlite:///{tmp_path}/mlflow.db"
    first, second = (StudyProjector(storage, uri, view.name) for _ in range(2))
    first.project(study(levels=("on",), reached=0))
    second.project(view)
    monkeypatch.setattr(Writer, "project", lambda *_: pytest.fail("all of it is there"))
    assert first.project(view).runs == len(keys(view))


def test_the_lock_is_exclusive_waits_and_gives_up(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    order: list[str] = []

    def second() -> None:
        with projection_lock(storage, "a/cursor.json"):
            order.append("second")

    with projection_lock(storage, "a/cursor.json"):
        with (
            pytest.raises(TimeoutError, match="another process"),
            projection_lock(storage, "a/cursor.json", wait_s=0.1),
        ):
            pytest.fail("two hold it")
        with projection_lock(storage, "b/cursor.json", wait_s=0.0):
            pass
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.2)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]


@pytest.mark.parametrize(("orphaned", "attempts"), [(True, 1), (False, 3)])
def test_an_orphan_tries_once(orphaned: bool, attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def attempt(_: Shipper) -> bool:
        tried.append(1)
        return False

    monkeypatch.setattr(Shipper, "attempt", attempt)
    monkeypatch.setattr(threading.Event, "wait", lambda *_: False)
    Shipper(Storage(tmp_path), "filter", "sqlite:///none.db").finish(orphaned=lambda: orphaned)
    assert len(tried) == attempts
