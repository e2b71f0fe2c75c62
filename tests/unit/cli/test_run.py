"""`simlap run` of an experiment with stages: which of them are run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from simlap import cli
from simlap.config import yaml
from simlap.record.journal import Journal
from simlap.record.mlflow import Projected
from simlap.record.ship import ShipReport
from simlap.record.view import CellView
from simlap.run import single
from simlap.run.single import PreparedRun
from simlap.run.single import record as single_record
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.train.world import World
from tests.tiny import TREE


class Runner:
    """The command, with the training in this process and nothing sent to MLflow."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.ran: list[str] = []
        self.recorded: list[str] = []
        self.sent: list[CellView] = []
        self.last_epoch: int | None = None
        monkeypatch.chdir(folder)
        monkeypatch.setattr(single, "execute", self._execute)
        monkeypatch.setattr(single, "record", self._record)
        monkeypatch.setattr(single, "project_run", self._project)
        first = {**TREE, "name": "first", "train": {"epochs": 2, "batch_size": 128}}
        tuned = {**TREE, "pretrain": "first.yaml", "train": {"epochs": 1, "batch_size": 128}}
        (folder / "first.yaml").write_text(yaml.dump(first))
        (folder / "base.yaml").write_text(yaml.dump(tuned))

    def __call__(self, *arguments: str) -> int:
        self.ran, self.recorded = [], []
        self.monkeypatch.setattr(sys, "argv", ["simlap", "run", "base.yaml", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    def _execute(self, run: PreparedRun, **_: Any) -> CellView:
        self.ran.append(run.experiment.name)
        going = run_cell(run.task, World())
        for progress in going:
            if progress.epoch == self.last_epoch:
                going.close()
                cell = run.storage.child("cells", run.task.cell_id)
                Journal(cell, writer="w", attempt=1).end("interrupted", progress.epoch)
                break
        return single._after(run, run.storage.child("cells", run.task.cell_id), 1, [])

    def _record(self, run: PreparedRun, uri: str) -> ShipReport:
        self.recorded.append(run.experiment.name)
        return single_record(run, uri)

    def _project(self, view: CellView, *_: Any) -> Projected:
        self.sent.append(view)
        return Projected()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(tmp_path, monkeypatch)


def test_stages_in_order_and_done_ones_kept(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert run.ran == run.recorded == ["first", "tiny"]
    shown = capsys.readouterr().out
    assert shown.index("stage 1 of 2, first: run ") < shown.index("stage 2 of 2, tiny: run ")
    assert run("optim.lr=0.02") == 0
    assert (run.ran, run.recorded) == (["tiny"], ["first", "tiny"])
    assert "stage 1 of 2, first: run " in (shown := capsys.readouterr().out)
    assert " is done, in " in shown


def test_a_protocol_added_to_a_finished_run(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    """The results of the run show it, MLflow gets it, and a later `sync` finds it."""
    (run.folder / "base.yaml").write_text((run.folder / "first.yaml").read_text())
    assert run("train.epochs=1", "evaluate=[{kind: probe}]") == 0
    capsys.readouterr()
    assert run("train.epochs=1", "evaluate=[{kind: linear, l2: 0.01}]") == 0
    shown = capsys.readouterr().out
    assert "test/linear_top1" in shown
    assert "test/probe_top1" not in shown, "not asked for"
    sent = run.sent[-1]
    assert "test/linear_top1" in sent.result
    assert sent.rows[-1].metrics.keys() >= {"val/linear_top1", "linear_l2"}
    again = single.reopen(Storage("runs"), sent.cell_id)
    single_record(again, "sqlite://")
    assert run.sent[-1].result.keys() >= {"test/linear_top1", "test/probe_top1"}


def test_an_interrupted_stage_is_resumed_before_the_next(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    run.last_epoch = 1
    assert run() == cli.INTERRUPTED
    assert run.ran == ["first"]
    assert "continue with: simlap run base.yaml --resume" in capsys.readouterr().err
    run.last_epoch = None
    assert run() == cli.WRONG_INPUT
    assert "interrupted after epoch 1 of 2; add --resume" in capsys.readouterr().err
    assert run.ran == []
    assert run("--resume") == 0
    assert run.ran == ["first", "tiny"]


def test_who_goes_on_under_other_code_is_told(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    run.last_epoch = 1
    run.monkeypatch.setattr(single, "collect", lambda: {"code": "before"})
    assert run() == cli.INTERRUPTED
    assert "other code" not in capsys.readouterr().out
    run.last_epoch = None
    run.monkeypatch.setattr(single, "collect", lambda: {"code": "after"})
    assert run("--resume") == 0
    shown = capsys.readouterr().out
    assert shown.count("begun under other code (hash before → after): its numbers will be of both\n") == 1
    assert run.sent[1].codes == ["before", "after"], "as each attempt noted"
    assert run() == 0
    assert "other code" not in capsys.readouterr().out, "nothing goes on"


def test_after_a_failed_stage_nothing_is_started(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(prepared: PreparedRun, **_: Any) -> CellView:
        run.ran.append(prepared.experiment.name)
        return CellView(prepared.task.cell_id, 0, "failed", reason="boom", error="boom")

    run.monkeypatch.setattr(single, "execute", fail)
    assert run() == cli.FAILED
    assert run.ran == ["first"]
    assert "failed: boom" in capsys.readouterr().err
