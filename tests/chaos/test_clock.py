"""A clock that is set back, or forward, while something runs: order, durations and leases do not hang on it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from simlap.record.journal import Journal, cell_storage, end_for_worker, read_cell, read_rows
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.study import lease
from simlap.study.budget import spending
from simlap.study.events import EventLog, read_events
from simlap.study.index import Index
from simlap.study.lease import Lease, is_dead
from simlap.train.world import World
from tests.chaos.test_checkpoints import outcome, run, task

DAY_NS = 24 * 3600 * 10**9


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The time of day jumps by up to ten days to and fro at every look; what never goes back is left alone."""
    rng, real = random.Random(7), time.time_ns

    def time_ns() -> int:
        return real() + rng.randrange(-10 * DAY_NS, 10 * DAY_NS)

    def begin() -> None:
        monkeypatch.setattr(time, "time_ns", time_ns)
        monkeypatch.setattr(time, "time", lambda: time_ns() / 1e9)

    return begin


def test_a_run_comes_out_the_same(jumping: Callable[[], None], tmp_path: Path) -> None:
    whole, jumped = Storage(tmp_path / "whole"), Storage(tmp_path / "jumped")
    run(whole)
    jumping()
    run(jumped, until=1)
    run(jumped, until=2)
    run(jumped)
    assert outcome(jumped) == outcome(whole)
    view = read_cell(jumped, task(jumped).cell_id)
    assert [row.epoch for row in view.rows] == [1, 2, 3]
    for row in view.rows:
        assert all(value >= 0 for name, value in row.metrics.items() if name.startswith("time/"))
    assert view.started_ms is not None
    assert view.ended_ms is not None
    assert view.ended_ms >= view.started_ms
    attempts = [row["attempt"] for row in read_rows(cell_storage(jumped, view.cell_id))]
    assert attempts == sorted(attempts)


@pytest.mark.parametrize("ahead", [-1, 1])
def test_the_drivers_word_is_the_last(ahead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows that the worker is gone, whichever of their clocks is ahead."""
    storage = Storage(tmp_path)
    made = task(storage)
    cell = cell_storage(storage, made.cell_id)
    next(run_cell(made, World()))
    Journal(cell, writer="host.1", attempt=1).end("interrupted", 1, reason="asked to stop")
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + ahead * DAY_NS)
    end_for_worker(cell, made.experiment, "stopped", attempt=1, epoch=1, reason="by the scheduler")
    assert read_cell(storage, made.cell_id).state == "stopped"


def test_hours_of_a_launch(jumping: Callable[[], None], tmp_path: Path) -> None:
    now = [0.0]
    jumping()
    for _ in range(2):
        log = EventLog(Storage(tmp_path), block=3, clock=lambda: now[0])
        for _ in range(5):
            log.write("launch")
            now[0] += 900.0
    assert (
        spending(read_events(Storage(tmp_path)), Index(Storage(tmp_path), Storage(tmp_path))).wall_hours
        == 2 * 4 * 900 / 3600
    )


def test_events_of_before_make_no_negative_hours(tmp_path: Path) -> None:
    events = [{"type": "launch", "launch": 1, "t": t} for t in (7_200_000, 3_600_000)]
    assert spending(events, Index(Storage(tmp_path), Storage(tmp_path))).wall_hours == 0.0


def test_a_launch_that_is_alive_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil's start of a process moves with the clock."""
    folder = Storage(tmp_path)
    with Lease(folder, beat_s=0.05):
        held = folder.read_json("lease.json")
        real = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) - 3600.0)
        assert not is_dead(held)
        assert is_dead({**held, "process_started": held["process_started"] - 1}), "another process of that number"


def test_a_process_that_is_gone_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        held = {
            "machine": lease._machine(), "pid": child.pid, "process_started": lease._started(psutil.Process(child.pid)),
            "started_in": "ticks",
        }  # fmt: skip
        assert not is_dead(held)
    finally:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_dead(held), "a zombie"
        child.wait()
    assert is_dead(held)
    assert not is_dead({**held, "machine": "another", "pid": os.getpid()}), "nothing is known of it"
