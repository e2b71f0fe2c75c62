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

import pytest

from simlap.config import yaml
from simlap.storage import Storage
from tests.chaos.cluster import Raylets
from tests.chaos.elastic import ELASTIC, Watch, write_study
from tests.chaos.study import planned
from tests.tiny import TREE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EPOCHS, CELL_EPOCHS = 80, 20


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


def lose_and_gain(watch: Watch, cluster: Raylets, what: str) -> None:
    """A run on two nodes loses one, goes on with the other, and grows back."""
    took = {"started": watch.until([2], 3, timeout_s=180)}
    cluster.lose(random.Random(7))
    took["lost"] = watch.until([2, 1], 1, timeout_s=180)
    cluster.add()
    took["grown"] = watch.until([2, 1, 2], 1, timeout_s=180)
    print(what, json.dumps(took))


def test_a_run_follows_the_cluster(tmp_path: Path, cluster: Raylets) -> None:
    experiment = tmp_path / "run.yaml"
    experiment.write_text(yaml.dump({**TREE, "train": {"epochs": EPOCHS, "batch_size": 127}, "resources": ELASTIC}))
    storage = Storage(tmp_path / "runs")
    with launched(tmp_path, "run", "run.yaml", "--address", cluster.address) as process:
        check = alive(process, tmp_path)
        while not (found := storage.list("cells")):
            check()
            time.sleep(0.2)
        watch = Watch(storage, found[0], check)
        lose_and_gain(watch, cluster, "run")
        code = process.wait(300)
    said = (tmp_path / "launch.log").read_text(errors="replace")
    assert code == 0, said
    watch.check(EPOCHS, loss_at=0)
    assert "going on with 1 of 2 workers" in said
    assert "to go on with 2 of 2 workers" in said


def test_a_study_follows_the_cluster(tmp_path: Path, cluster: Raylets) -> None:
    """Its stage loses a node and grows when another one joins; then cells run on both."""
    study = write_study(tmp_path, stage_epochs=EPOCHS, epochs=CELL_EPOCHS)
    storage = Storage(tmp_path / "runs")
    stage, *cells = planned(study, tmp_path / "runs")
    with launched(tmp_path, "ablate", "study.yaml", "--address", cluster.address) as process:
        watch = Watch(storage, stage.cell_id, alive(process, tmp_path))
        lose_and_gain(watch, cluster, "study")
        code = process.wait(300)
    assert code == 0, (tmp_path / "launch.log").read_text(errors="replace")
    watch.check(EPOCHS, loss_at=0)
    times = []
    for cell in cells:
        rows = Watch(storage, cell.cell_id, lambda: None).rows
        times.append((rows[0]["t"], rows[-1]["t"]))
    first, second = times
    # a node has one CPU: who runs at the same time runs on another node
    assert first[0] < second[1]
    assert second[0] < first[1]
