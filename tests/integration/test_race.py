"""A race on a real local Ray: the same decisions and the same numbers, whatever the order, the devices and the accidents."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simlap.study.events import ENVELOPE, read_events
from tests.integration.studies import Lab, mlflow_runs, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# the loss tells learning rates apart at once, and not how much is erased: given up at the rung
STUDY = """
name: small
base: base.yaml
set: {train.epochs: 3, data.fraction: 0.3}
factors:
  lr: {path: optim.lr, levels: [0.01, 0.0001, 0.03]}
  erase: {path: data.augment.erase, levels: [0.2, 0.21]}
design: one_at_a_time
baseline: {lr: 0.01, erase: 0.2}
seeds: 5
metric: {name: train/loss, mode: min}
scheduler: {kind: race, first_seeds: 3, step: 1, futility: 0.2, futility_epochs: [2]}
"""

BASELINE, SLOW, FAST, SAME = (f"lr={lr} erase={e}" for lr, e in ((0.01, 0.2), (0.0001, 0.2), (0.03, 0.2), (0.01, 0.21)))


@pytest.fixture
def one_core() -> Iterator[None]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


def race_of(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.folder / "runs/studies/small/race.json").read_text())
    return found


def decisions(lab: Lab) -> list[tuple[Any, ...]]:
    """Every event of a decision, with its numbers."""
    events = [event for event in read_events(lab.storage.child("studies", "small")) if event["type"] == "race_decision"]
    return sorted(tuple(sorted((k, str(v)) for k, v in event.items() if k not in ENVELOPE)) for event in events)


def test_order_devices_and_a_kill_change_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    straight = Lab(tmp_path / "straight", STUDY)
    done = straight.ablate()
    assert done.returncode == 0, done.stderr
    race = race_of(straight)
    verdicts = {arm: found["decision"] and found["decision"]["verdict"] for arm, found in race["arms"].items()}
    assert race["over"]
    assert verdicts == {BASELINE: None, SLOW: "worse", FAST: "better", SAME: "futile"}
    states = {key: (cell.state, cell.epoch) for key, cell in straight.cells().items()}
    assert [states[SLOW, seed] for seed in range(5)] == [("done", 3)] * 3 + [("new", 0)] * 2
    assert [states[SAME, seed] for seed in range(5)] == [("stopped", 2)] * 3 + [("new", 0)] * 2
    assert [states[FAST, seed] for seed in range(5)] == [("done", 3)] * 4 + [("new", 0)]
    starts = straight.starts()
    assert starts[FAST, 0] == [0, 2], "at the rung it paused, and went on"
    tags = {run.data.tags.get("simlap.arm"): run.data.tags for run in mlflow_runs(straight)
            if run.data.tags["simlap.kind"] == "arm"}  # fmt: skip
    assert tags[SLOW]["simlap.verdict"] == "worse"
    report = (tmp_path / "straight/runs/studies/small/report/report.md").read_text()
    assert f"{SAME} cannot be decided with the planned seeds against {BASELINE}" in report
    assert "Holm" not in report

    request.getfixturevalue("one_core")
    shuffled = STUDY.replace("[0.01, 0.0001, 0.03]", "[0.03, 0.01, 0.0001]").replace("[0.2, 0.21]", "[0.21, 0.2]")
    other = Lab(tmp_path / "other", shuffled)
    going = other.start("ablate", "study.yaml")
    events = tmp_path / "other/runs/studies/small/events"
    # the first look is over, and its survivors go on
    wait_for(lambda: events.exists() and any(2 in starts for starts in other.starts().values()))
    os.kill(going.pid, signal.SIGKILL)
    going.communicate()
    time.sleep(3)  # its actors live on for a moment
    assert not race_of(other)["over"]
    done = other.ablate()
    assert done.returncode == 0, done.stderr
    assert race_of(other) == race
    assert decisions(other) == decisions(straight), "each once"
    assert other.numbers() == straight.numbers(), "to the last digit"
    assert {key: (cell.state, cell.epoch) for key, cell in other.cells().items()} == states
