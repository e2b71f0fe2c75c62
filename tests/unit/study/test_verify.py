"""`simlap verify`: a run that is trained anew comes out as its record says, unless the record was altered."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simlap import cli
from simlap.config import yaml
from simlap.errors import UserError
from simlap.record.journal import cell_storage, read_study
from simlap.record.provenance import collect
from simlap.record.replay import Difference
from simlap.report import render
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.study.plan import Plan, make_plan
from simlap.study.planned import PlannedCell
from simlap.study.spec import load_study
from simlap.study.verify import compare, verify
from simlap.train.world import World
from tests.tiny import TREE

STUDY = """
name: small
base: base.yaml
factors: {lr: {path: optim.lr, levels: [0.01, 0.02]}}
baseline: {lr: 0.01}
seeds: 1
scheduler: {kind: asha, grace_epochs: 1, reduction_factor: 2}
"""
SMALL = {
    **TREE, "data": {**TREE["data"], "fraction": 0.1}, "train": {"epochs": 2, "batch_size": 64},
    "evaluate": [{"kind": "knn", "every_epochs": 1}],
}  # fmt: skip


def make(folder: Path, base: dict[str, Any], text: str = STUDY) -> Plan:
    """A study with all its cells trained, in this process."""
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(yaml.dump(base))
    (folder / "study.yaml").write_text(text)
    plan = make_plan(load_study(folder / "study.yaml"), Storage(folder / "runs"))
    plan.save()
    for cell in (*plan.stages, *plan.cells):
        train(cell)
    return plan


def train(cell: PlannedCell) -> None:
    config = cell.experiment.model_dump(mode="json")
    facts = {**collect(), "data_fingerprint": cell.fingerprint}
    for _ in run_cell(CellTask(cell.cell_id, config, cell.storage.uri, facts, cell.start), World()):
        pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "made"
    make(
        folder, SMALL, STUDY.replace("name: small", "name: small\nmetric: {name: val/knn_top1, report: test/knn_top1}")
    )
    return folder


@pytest.fixture
def storage(made: Path, tmp_path: Path) -> Storage:
    shutil.copytree(made, tmp_path / "study")
    return Storage(tmp_path / "study" / "runs")


def ids(storage: Storage) -> list[str]:
    return [cell.cell_id for arm in read_study(storage, "small").arms for cell in arm.cells]


def alter(storage: Storage, cell_id: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the journal's rows by hand."""
    cell = cell_storage(storage, cell_id)
    for name in cell.list("journal"):
        rows = [json.loads(line) for line in cell.read(f"journal/{name}").decode().splitlines()]
        for row in rows:
            change(row)
        cell.write(f"journal/{name}", "".join(f"{json.dumps(row)}\n" for row in rows).encode())


def set_loss(row: dict[str, Any]) -> None:
    if row["type"] == "metrics" and row["epoch"] == 1:
        row["metrics"]["train/loss"] += 1e-9


def command(monkeypatch: pytest.MonkeyPatch, storage: Storage, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["simlap", "verify", *arguments, "--storage", storage.uri])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_run_comes_out_again(storage: Storage) -> None:
    before = {path for path in Path(storage.uri).rglob("*") if "cells" in path.parts}
    replay = verify(storage, "small", draw=3)
    assert (replay.verdict, replay.exact, replay.unlike, replay.different) == ("equal", True, [], 0)
    assert replay.epochs == 1, "the scheduler's first rung"
    assert replay.values > 5
    assert replay.same_code
    assert replay.cell_id in ids(storage)
    assert verify(storage, "small", draw=3).cell_id == replay.cell_id
    assert {path for path in Path(storage.uri).rglob("*") if "cells" in path.parts} == before
    assert len(storage.read_json("studies/small/verify.json")["history"]) == 2


def test_a_whole_run_is_compared_with_its_result_too(storage: Storage) -> None:
    cell = ids(storage)[0]
    assert verify(storage, "small", cell_id=cell, epochs=99).verdict == "equal"
    result = storage.read_json(f"cells/{cell}/result.json")
    for metrics in result["evaluations"].values():
        metrics["test/knn_top1"] += 0.001
    storage.write_json(f"cells/{cell}/result.json", result)
    replay = verify(storage, "small", cell_id=cell, epochs=2)
    assert [(one.epoch, one.name) for one in replay.differences] == [(2, "test/knn_top1")]


def test_an_altered_metric_is_found(storage: Storage) -> None:
    cell = ids(storage)[1]
    alter(storage, cell, set_loss)
    replay = verify(storage, "small", cell_id=cell)
    assert (replay.verdict, replay.different) == ("different", 1)
    (found,) = replay.differences
    assert (found.epoch, found.name) == (1, "train/loss")
    assert found.recorded is not None
    assert found.replayed == pytest.approx(found.recorded - 1e-9, abs=1e-12)


def test_elsewhere_a_tolerance_holds(storage: Storage) -> None:
    cell = ids(storage)[0]

    def elsewhere(row: dict[str, Any]) -> None:
        set_loss(row)
        if row["type"] == "start":
            row["provenance"]["packages"]["torch"] = "1.0"

    alter(storage, cell, elsewhere)
    replay = verify(storage, "small", cell_id=cell)
    assert (replay.verdict, replay.exact) == ("equal", False)
    assert len(replay.unlike) == 1
    assert replay.unlike[0].startswith("torch ")
    assert replay.unlike[0].endswith(", then 1.0")


def test_other_code_is_said(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = ids(storage)[0]

    def old(row: dict[str, Any]) -> None:
        if row["type"] == "start":
            row["provenance"]["code"] = "0123456789abcdef"

    alter(storage, cell, old)
    assert command(monkeypatch, storage, "small", "--cell", cell) == 0
    assert "no sign that the record is wrong" in capsys.readouterr().out


def test_the_command_and_the_badge(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, storage, "small", "--seed", "1") == 0
    told = capsys.readouterr().out
    assert "bit for bit" in told
    assert "equal: all came out again" in told
    assert "**replay equal**" in storage.read("studies/small/report/report.md").decode()
    cell = ids(storage)[0]
    alter(storage, cell, set_loss)
    assert command(monkeypatch, storage, "small", "--cell", cell) == 1
    assert "epoch 1, train/loss: recorded " in capsys.readouterr().out
    for path in ("report.md", "report.html"):
        text = storage.read(f"studies/small/report/{path}").decode()
        assert "replay different" in text
        assert "first epoch 1, train/loss" in text
    summary = storage.read_json("studies/small/report/summary.json")["replay"]
    assert (summary["verdict"], summary["cell_id"]) == ("different", cell)


def test_wrong_input(storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, storage, "smal") == 2
    assert "no such study" in capsys.readouterr().err
    assert command(monkeypatch, storage, "small", "--cell", "0123") == 2
    assert "no finished run of study small" in capsys.readouterr().err
    for cell in ids(storage):
        storage.delete(f"cells/{cell}")
    assert command(monkeypatch, storage, "small") == 2
    assert "has no finished run" in capsys.readouterr().err
    assert not storage.exists("studies/small/verify.json")
    assert "replay" not in render(read_study(storage, "small"), "md")


def test_runs_of_several_workers_are_passed_over(storage: Storage) -> None:
    for cell in ids(storage):
        config = yaml.parse(storage.read(f"cells/{cell}/config.yaml").decode())
        config["resources"]["workers"] = 2
        storage.write(f"cells/{cell}/config.yaml", yaml.dump(config).encode())
    with pytest.raises(UserError, match="only runs of one worker are replayed"):
        verify(storage, "small")


def test_a_run_that_starts_from_a_stage(tmp_path: Path) -> None:
    base = {
        **SMALL, "train": {"epochs": 1, "batch_size": 64}, "method": {"kind": "supervised"},
        "pretrain": {**SMALL, "name": "first", "train": {"epochs": 1, "batch_size": 64}},
    }  # fmt: skip
    text = STUDY.replace("scheduler: {kind: asha, grace_epochs: 1, reduction_factor: 2}", "")
    text = (
        text.replace("levels: [0.01, 0.02]", "levels: [0.01]") + "metric: {name: val/knn_top1, report: test/knn_top1}\n"
    )
    plan = make(tmp_path / "study", base, text)
    (cell,), (stage,) = plan.cells, plan.stages
    assert verify(plan.storage, "small", cell_id=cell.cell_id).verdict == "equal"
    plan.storage.delete(f"cells/{stage.cell_id}/checkpoints")
    with pytest.raises(UserError, match="is not there"):
        verify(plan.storage, "small", cell_id=cell.cell_id)
    replays = [verify(plan.storage, "small", draw=draw) for draw in range(4)]
    assert {replay.cell_id for replay in replays} == {stage.cell_id}
    assert any("started from" in text for replay in replays for text in replay.skipped)


def test_what_counts_as_a_difference() -> None:
    recorded = {(1, "a"): 1.0, (1, "b"): 0.5}
    assert compare(recorded, {**recorded, (1, "new"): 3.0}, exact=True) == []
    assert compare(recorded, {(1, "a"): 1.0}, exact=False) == [Difference(1, "b", 0.5, None)]
    assert compare(recorded, {**recorded, (2, "a"): 1.5}, exact=True) == [Difference(2, "a", None, 1.5)]
    assert compare(recorded, {(1, "a"): 1.04, (1, "b"): 0.5}, exact=False) == []
    assert compare(recorded, {(1, "a"): 1.2, (1, "b"): 0.5}, exact=False) == [Difference(1, "a", 1.0, 1.2)]
