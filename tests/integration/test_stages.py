"""Stages for real: Ray, MLflow's sqlite store, the command line in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from simlap import cli
from simlap.config import yaml
from simlap.record.journal import cell_storage, read_cell, read_rows
from tests.integration.studies import Lab, mlflow_runs, wait_for
from tests.tiny import TREE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # Ray starts several times in one test

STUDY = """
name: small
base: base.yaml
factors:
  start: {path: pretrain, levels: {good: first.yaml, broken: broken.yaml}}
  decay: {path: optim.layer_decay, levels: [0.5, 1.0]}
exclude: [{start: broken, decay: 1.0}]
baseline: {start: good, decay: 0.5}
seeds: 2
metric: {name: val/probe_top1, report: test/linear_top1}
"""
FIRST = {**TREE, "name": "first", "train": {"epochs": 30, "batch_size": 128}, "evaluate": [{"kind": "probe"}]}
TUNED = {
    "pretrain": "first.yaml",
    "method": {"kind": "supervised"},
    "train": {"epochs": 2, "batch_size": 128},
    "evaluate": [{"kind": "probe"}, {"kind": "linear", "l2": 0.001}],
}


def lab(folder: Path, study: str = STUDY, *, first: dict[str, Any] = FIRST, **base: Any) -> Lab:
    folder.mkdir(parents=True, exist_ok=True)
    diverging = {**first, "name": "broken", "optim": {"name": "sgd", "lr": 1e30, "warmup_epochs": 0}}
    (folder / "first.yaml").write_text(yaml.dump(first))
    (folder / "broken.yaml").write_text(yaml.dump(diverging))
    return Lab(folder, study, **{**TUNED, **base})


def starts(lab: Lab) -> dict[str, list[int]]:
    """From which epochs each run was started, by its id."""
    return {
        name: [row["from_epoch"] for row in read_rows(cell_storage(lab.storage, name)) if row["type"] == "start"]
        for name in lab.storage.list("cells")
    }


def test_a_study_trains_each_backbone_once(tmp_path: Path) -> None:
    """Interrupted, applied again with a stage that fails, then without it: nothing is trained twice."""
    one = lab(tmp_path)
    going = one.start("ablate", "study.yaml")
    plan = tmp_path / "runs/studies/small/plan.json"
    wait_for(lambda: plan.exists() and any(stage.cell.epoch for stage in one.view().stages))
    os.kill(going.pid, signal.SIGINT)
    out, err = going.communicate(timeout=600)
    assert going.returncode == 130, (out, err)
    assert all(cell.state == "new" for cell in one.cells().values()), "the stages come first"

    done = one.ablate()
    assert done.returncode == 1, done.stderr
    stages = {(stage.name, stage.cell.seed): stage.cell for stage in one.view().stages}
    assert {key: stage.state for key, stage in stages.items()} == {
        ("pretrain start=good", 0): "done", ("pretrain start=good", 1): "done",
        ("pretrain start=broken decay=0.5", 0): "failed", ("pretrain start=broken decay=0.5", 1): "failed",
    }  # fmt: skip
    for (arm, seed), cell in one.cells().items():
        if "start=broken" in arm:
            broken = stages["pretrain start=broken decay=0.5", seed].cell_id
            reason = (
                f"pretrain start=broken decay=0.5 · seed {seed} ({broken}), which it starts from, failed: DivergedError"
            )
            assert cell.state == "failed"
            assert (cell.reason or "").startswith(reason)
            assert reason in done.stdout
        else:
            assert (cell.state, cell.start) == ("done", stages["pretrain start=good", seed].cell_id)
    assert "2 failed cells" in done.stderr
    begun = starts(one)
    assert any(begun[stage.cell_id][-1] > 0 for stage in stages.values()), "it went on from where it was interrupted"

    one.write(STUDY.replace(", broken: broken.yaml", "").replace("exclude: [{start: broken, decay: 1.0}]\n", ""))
    again = one.ablate()
    assert again.returncode == 0, again.stderr
    assert "nothing to run" in again.stdout
    assert starts(one) == begun
    runs = [run for run in mlflow_runs(one) if run.data.tags.get("simlap.in_study") != "false"]
    kinds = [run.data.tags["simlap.kind"] for run in runs]
    assert sorted(kinds) == ["arm"] * 2 + ["cell"] * 4 + ["stage"] * 2 + ["study"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    ids = {run.data.tags["simlap.kind"]: run.info.run_id for run in runs}
    for run in runs:
        if run.data.tags["simlap.kind"] == "stage":
            assert run.data.tags["mlflow.parentRunId"] == ids["study"]
        if run.data.tags["simlap.kind"] == "cell":
            stage = stages["pretrain start=good", int(run.data.params["seed"])]
            assert run.data.params["start"] == stage.cell_id


def test_run_eval_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of two stages, then what can be done with its checkpoint."""
    small = {"name": "test_resnet"}
    short = {**FIRST, "backbone": small, "train": {"epochs": 1, "batch_size": 128}}
    one = lab(tmp_path, first=short, backbone=small, train={"epochs": 1, "batch_size": 128})
    done = one.run("run", "base.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no noise"
    assert "stage 1 of 2, first: run " in done.stdout
    assert "stage 2 of 2, tiny: run " in done.stdout
    assert "test/linear_top1" in done.stdout
    views = {view.config["name"]: view for view in (read_cell(one.storage, name) for name in one.storage.list("cells"))}
    assert views["tiny"].start == views["first"].cell_id

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiments = {e.name: e.experiment_id for e in client.search_experiments()}
    for name, start in (("first", None), ("tiny", views["first"].cell_id)):
        (run,) = client.search_runs([experiments[name]])
        assert run.data.tags["simlap.cell_id"] == views[name].cell_id
        assert run.data.params.get("start") == start

    monkeypatch.chdir(tmp_path)
    tuned = views["tiny"].cell_id
    call(monkeypatch, "eval", tuned, "--protocol", "linear,knn", "--set", "linear.l2=0.001", "--data", "digits")
    saved = json.loads((tmp_path / f"runs/cells/{tuned}/evaluations/results.json").read_text())["results"].values()
    accuracy = {name: value for one in saved for name, value in one["metrics"].items()}
    assert accuracy["test/digits_linear_top1"] == pytest.approx(views["tiny"].result["test/linear_top1"], abs=0.02)
    call(monkeypatch, "export", tuned, "backbone")
    assert (tmp_path / "backbone/model.safetensors").exists()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["simlap", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.OK
