"""A search on a real local Ray, killed in the middle, comes to what it would have come to."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from simlap.config import yaml
from simlap.record.journal import cell_storage, read_cell, read_rows, read_study
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.study.events import read_events
from simlap.study.plan import make_plan
from simlap.study.spec import load_study
from simlap.train.world import World
from tests.integration.studies import Lab, mlflow_runs, wait_for
from tests.tiny import TREE

STUDY = """
name: small
base: base.yaml
set: {train.epochs: 2}
factors: {filter: {path: method.gate.kind, levels: [gumbel, open]}}
baseline: {filter: gumbel}
seeds: 1
search:
  factors: {lr: {path: optim.lr, range: {low: 1e-4, high: 1e-1, scale: log}}}
  trials: 4
  batch: 2
  epochs: 15
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def undisturbed(folder: Path) -> dict[str, tuple[str, float | None]]:
    """The search without Ray, a cell after the other, in this process."""
    folder.mkdir()
    (folder / "base.yaml").write_text(yaml.dump(TREE))
    (folder / "study.yaml").write_text(STUDY)
    study, storage = load_study(folder / "study.yaml"), Storage(folder / "runs")
    while (made := make_plan(study, storage)).later or any(cell.pending for cell in made.trials):
        for cell in made.trials:
            if cell.pending:
                list(run_cell(CellTask(cell.cell_id, cell.experiment.model_dump(mode="json"), storage.uri), World()))
    made.save()
    return tuned(storage)


def tuned(storage: Storage) -> dict[str, tuple[str, float | None]]:
    """By arm: its values and what they reached."""
    view = read_study(storage, "small")
    return {name: (str(values), search.value) for search in view.searches for name, values in search.arms.items()}


def test_killed_in_the_middle_of_a_search(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path / "quiet")
    lab = Lab(tmp_path / "lab", STUDY)
    going = lab.start("ablate", "study.yaml")

    def trials() -> list[tuple[str, str]]:
        """Id and state of every trial that was asked so far."""
        if not lab.storage.exists("studies/small/plan.json"):
            return []
        view = lab.view()
        return [(c.cell_id, c.state) for search in view.searches for trial in search.trials for c in trial.cells]

    def in_the_middle() -> bool:
        known = trials()
        late = [read_cell(lab.storage, cell_id).durable_epoch for cell_id, state in known if state == "running"]
        return len(known) == 8 and any(epoch >= 2 for epoch in late)

    wait_for(in_the_middle, 400)
    os.kill(going.pid, signal.SIGKILL)
    going.communicate()
    time.sleep(3)  # its actors live on for a moment
    assert "+ 1 after the search" in lab.run("plan", "study.yaml").stdout
    done = lab.ablate()
    assert done.returncode == 0, done.stderr
    assert tuned(lab.storage) == expected
    assert {state for _, state in trials()} == {"done"}
    for cell_id, _ in trials():
        ends = [row["state"] for row in read_rows(cell_storage(lab.storage, cell_id)) if row["type"] == "end"]
        assert ends.count("done") == 1, "each trial is run to its end once"
    for arm in lab.view().arms:
        (cell,) = arm.cells
        assert (cell.state, cell.epoch) == ("done", 2)
        assert f"'lr': {cell.config['optim']['lr']}" in expected[arm.name][0]
        assert "Tuned values" in done.stdout
    decided = [
        event for event in read_events(lab.storage.child("studies", "small")) if event["type"] == "search_decision"
    ]
    assert sorted(event["arm"] for event in decided) == sorted(expected)
    kinds = [run.data.tags["simlap.kind"] for run in mlflow_runs(lab)]
    assert sorted(kinds) == ["arm"] * 2 + ["cell"] * 2 + ["study"] + ["trial"] * 8
