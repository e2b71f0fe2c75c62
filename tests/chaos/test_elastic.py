"""Runs that go on with fewer workers when a node is lost and none is free, and grow back; nodes that join a running study."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from simlap.config import yaml
from simlap.hung import VARIABLE
from simlap.record.journal import now_ms, read_cell
from simlap.record.view import PREEMPTED
from simlap.storage import Storage
from simlap.study.events import read_events
from tests.chaos.cluster import WORKER, Raylets
from tests.chaos.elastic import ELASTIC, Watch, write_study
from tests.chaos.study import planned
from tests.tiny import TREE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HUNG_S = 5.0
GRACE_S = 30.0
"""What Kubernetes gives by default; spot machines of AWS give 120, Slurm what is asked for."""
EPOCHS = 100_000
"""Interrupted when what is tested has happened, on a slow machine as on a fast one."""


@pytest.fixture(name="cluster", scope="module")
def _cluster() -> Iterator[Raylets]:
    with Raylets(2) as cluster:
        yield cluster


@contextmanager
def launched(folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    log = (folder / "launch.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "simlap.cli", *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def alive(process: subprocess.Popen[bytes], folder: Path) -> Callable[[], None]:
    def check() -> None:
        assert process.poll() is None, (folder / "launch.log").read_text(errors="replace")

    return check


def stop(process: subprocess.Popen[bytes], folder: Path, how: signal.Signals, expected: int) -> str:
    """As a user would, or whoever takes the machine away. What the launch printed."""
    process.send_signal(how)
    code = process.wait(120)
    said = (folder / "launch.log").read_text(errors="replace")
    assert code == expected, said
    return said


def lose_and_gain(watch: Watch, cluster: Raylets, before: list[int], what: str) -> None:
    """A run on two nodes, the oldest ones, loses one, goes on with the other, and grows back."""
    cluster.lose(random.Random(7), of=2)
    took = {"lost": watch.until([*before, 1], 2, timeout_s=180)}
    cluster.add()
    took["grown"] = watch.until([*before, 1, 2], 2, timeout_s=180)
    print(what, json.dumps(took))


def test_a_run_follows_the_cluster(tmp_path: Path, cluster: Raylets, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of it stands still; its node is lost; another one comes; a notice that the launch's machine is taken away."""
    monkeypatch.setenv(VARIABLE, f"{HUNG_S:g}")
    experiment = tmp_path / "run.yaml"
    experiment.write_text(yaml.dump({**TREE, "train": {"epochs": EPOCHS, "batch_size": 127}, "resources": ELASTIC}))
    storage = Storage(tmp_path / "runs")
    with launched(tmp_path, "run", "run.yaml", "--address", cluster.address) as process:
        check = alive(process, tmp_path)
        while not (found := storage.list("cells")):
            check()
            time.sleep(0.2)
        watch = Watch(storage, found[0], check)
        watch.until([2], 2, timeout_s=180)
        still = cluster.kill_process(WORKER, random.Random(7), signal.SIGSTOP)
        assert still is not None
        print(f"{VARIABLE} is {HUNG_S:g}: trained again after", watch.until([2, 2], 2, timeout_s=180))
        assert not psutil.pid_exists(still[0])
        lose_and_gain(watch, cluster, [2, 2], "run")
        notice_ms = now_ms()
        said = stop(process, tmp_path, signal.SIGTERM, 75)
    watch.check(losses=2)
    assert "going on with 1 of 2 workers" in said
    assert "to go on with 2 of 2 workers" in said
    assert "preempted and saved after epoch" in said
    assert f"continue with: simlap run run.yaml --address {cluster.address} --resume" in said
    view = read_cell(storage, found[0])
    assert (view.state, view.reason) == ("interrupted", PREEMPTED)
    assert view.ended_ms is not None
    saved_s = (view.ended_ms - notice_ms) / 1000
    print(f"saved {saved_s:.1f} s after the notice")
    assert saved_s < GRACE_S


def test_a_study_follows_the_cluster(tmp_path: Path, cluster: Raylets) -> None:
    """A cell on two nodes; a third one joins, and the next cell begins there; the first one loses a node and gets another."""
    study = write_study(tmp_path, epochs=EPOCHS)
    storage = Storage(tmp_path / "runs")
    group, one = (cell.cell_id for cell in planned(study, tmp_path / "runs"))
    with launched(tmp_path, "ablate", "study.yaml", "--address", cluster.address) as process:
        check = alive(process, tmp_path)
        watch, beside = Watch(storage, group, check), Watch(storage, one, check)
        watch.until([2], 2, timeout_s=180)
        assert beside.rows == []
        cluster.add()
        print("node taken", beside.until([1], 1, timeout_s=180))
        lose_and_gain(watch, cluster, [2], "study")
        assert beside.sizes == [1]
        stop(process, tmp_path, signal.SIGINT, 130)
    watch.check(losses=1)
    kinds = [
        event["type"] for event in read_events(storage.child("studies", "elastic")) if event.get("cell_id") == group
    ]
    resized = kinds.index("cell_resized")
    assert "cell_retried" in kinds[:resized]
    assert kinds[resized:] == ["cell_resized", "cell_started"]
