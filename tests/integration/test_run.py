"""`simlap run` through Ray Train, stopped and continued, and what can be asked of a study afterwards."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from simlap.record.journal import read_cell
from simlap.record.view import CellView
from tests.integration.studies import STUDY, Lab, wait_for

pytestmark = pytest.mark.slow


def only_cell(lab: Lab) -> CellView:
    names = lab.storage.list("cells")
    assert len(names) <= 1
    return read_cell(lab.storage, names[0]) if names else CellView("", 0, "new")


def numbers(cell: CellView) -> list[dict[str, float]]:
    return [{k: v for k, v in row.metrics.items() if not k.startswith("time/")} for row in cell.rows]


def test_stopped_by_ctrl_c_and_continued(tmp_path: Path) -> None:
    """Two workers; the interrupted run ends as an undisturbed one does, in one MLflow run."""
    arguments = ("run", "base.yaml", "train.epochs=25", "resources.workers=2", "checkpoint.every_epochs=7")
    lab = Lab(tmp_path / "interrupted")
    going = lab.start(*arguments)
    wait_for(lambda: only_cell(lab).epoch >= 2)
    os.kill(going.pid, signal.SIGINT)
    out, err = going.communicate(timeout=120)
    assert going.returncode == 130, (out, err)
    assert "continue with: simlap run base.yaml" in err
    assert "--resume" in err
    stopped = only_cell(lab)
    assert stopped.state == "interrupted"
    assert 2 <= stopped.epoch < 25

    refused = lab.run(*arguments)
    assert refused.returncode == 2
    assert "add --resume" in refused.stderr
    done = lab.run(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no noise"
    assert "test/probe_top1" in done.stdout
    assert "mlflow" in done.stdout

    whole = Lab(tmp_path / "whole")
    assert whole.run(*arguments).returncode == 0
    assert numbers(only_cell(lab)) == numbers(only_cell(whole)), "bit for bit, from the middle of an epoch"
    assert only_cell(lab).result == only_cell(whole).result

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{lab.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val/probe_top1")] == list(range(1, 26))


def test_a_study_stopped_by_ctrl_c_and_asked_about(tmp_path: Path) -> None:
    study = STUDY.replace("epochs: 12", "epochs: 40").replace("seeds: 2", "seeds: 1")
    lab = Lab(tmp_path, study)
    going = lab.start("ablate", "study.yaml")
    plan = tmp_path / "runs/studies/small/plan.json"
    wait_for(lambda: plan.exists() and any(cell.epoch >= 3 for cell in lab.cells().values()))
    os.kill(going.pid, signal.SIGINT)
    out, err = going.communicate(timeout=120)
    assert going.returncode == 130, (out, err)
    assert "continue with: simlap ablate study.yaml" in err
    assert not (tmp_path / "runs/studies/small/lease.json").exists()

    planned = lab.run("plan", "study.yaml")
    assert planned.returncode == 0
    assert ">" in planned.stdout
    assert "device-hours" in planned.stdout
    done = lab.ablate()
    assert done.returncode == 0, done.stderr
    assert {cell.state for cell in lab.cells().values()} == {"done"}
    assert all(len(starts) <= 2 for starts in lab.starts().values())

    assert "filter=open" in lab.run("status", "small").stdout
    assert lab.run("report", "study.yaml", "--format", "md").stdout.startswith("#")
    assert "\\toprule" in lab.run("report", "small", "--format", "latex").stdout
    (tmp_path / "mlflow.db").unlink()
    synced = lab.run("sync", "small")
    assert synced.returncode == 0, synced.stderr
    assert (tmp_path / "mlflow.db").exists()
