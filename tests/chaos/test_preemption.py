"""Machines that are about to be taken away: SIGTERM to the command, and to a worker; and workers that stand still."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from simlap.hung import VARIABLE
from simlap.record.journal import cell_storage, read_cell
from simlap.record.view import PREEMPTED
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.study.events import read_events
from simlap.train.world import World
from tests.chaos.cluster import ACTOR
from tests.integration.studies import Lab

STUDY = """
name: small
base: base.yaml
set: {train.epochs: 60}
factors: {filter: {path: method.gate.kind, levels: [gumbel, open]}}
baseline: {filter: gumbel}
seeds: 1
"""
HUNG_S = 5.0
GRACE_S = 30.0
"""What Kubernetes gives by default; spot machines of AWS give 120, Slurm what is asked for."""


def actors(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray's workers below a launch that run cells."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if words and words[0].startswith(ACTOR):
            found.append(child)
    return found


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 180.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.05)


def end(process: subprocess.Popen[str], timeout_s: float) -> tuple[int, str, float]:
    began = time.monotonic()
    try:
        _, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"did not end within {timeout_s} s: {process.communicate()}") from None
    return process.returncode, err, time.monotonic() - began


def came(storage: Storage, cell_id: str) -> tuple[Any, ...]:
    view = read_cell(storage, cell_id)
    result = cell_storage(storage, cell_id).read_json("result.json")
    rows = [{k: v for k, v in row.metrics.items() if not k.startswith("time/")} for row in view.rows]
    return view.state, result["checkpoint"]["sha256"], rows


def undisturbed(lab: Lab, folder: Path, cell_id: str) -> tuple[Any, ...]:
    """The same cell, in this process and in one go."""
    config = dict(read_cell(lab.storage, cell_id).config)
    for _ in run_cell(CellTask(cell_id, config, Storage(folder).uri), World()):
        pass
    return came(Storage(folder), cell_id)


@pytest.mark.slow
def test_a_study_saves_ends_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{HUNG_S:g}")
    lab = Lab(tmp_path / "lab", STUDY)
    process = lab.start("ablate", "study.yaml")
    study = lab.storage.child("studies", "small")

    def retried() -> list[tuple[str, str]]:
        events = [event for event in read_events(study) if event["type"] == "cell_retried"]
        return [(event["failure"], event["reason"]) for event in events]

    def both_train() -> bool:
        before = [read_cell(lab.storage, cell_id).epoch for cell_id in lab.storage.list("cells")]
        time.sleep(0.5)
        now = [read_cell(lab.storage, cell_id).epoch for cell_id in lab.storage.list("cells")]
        return len(before) == 2 and all(a < b for a, b in zip(before, now, strict=True))

    # processes that stand still are killed; so that nothing is over too soon, both at once
    wait_for(both_train, process)
    stopped = actors(process)
    began = time.monotonic()
    for actor in stopped:
        actor.send_signal(signal.SIGSTOP)
    wait_for(lambda: len(retried()) == 2, process)
    print(f"noticed {time.monotonic() - began:.1f} s after they were stopped, {VARIABLE} is {HUNG_S:g}")
    assert {failure for failure, _ in retried()} == {"lost"}, "tried again, not counted"
    # a notice to their processes: saved, and tried again, which is no failure either
    wait_for(both_train, process)
    for actor in actors(process):
        if actor not in stopped:
            actor.send_signal(signal.SIGTERM)
    wait_for(lambda: len(retried()) == 4, process)
    assert retried()[2:] == [("lost", PREEMPTED)] * 2
    assert not [actor for actor in stopped if actor.is_running() and actor.status() == psutil.STATUS_STOPPED]
    wait_for(both_train, process)
    # then to the launch
    process.send_signal(signal.SIGTERM)
    code, err, took = end(process, GRACE_S + 60)
    assert code == 75, err
    assert "preempted and saved; continue with: simlap ablate study.yaml" in err
    print(f"the launch ended {took:.1f} s after the notice")
    again = lab.run("ablate", "study.yaml")
    assert again.returncode == 0, again.stderr
    for cell_id in lab.storage.list("cells"):
        assert came(lab.storage, cell_id) == undisturbed(lab, tmp_path / "undisturbed", cell_id)
