"""`simlap eval` and `simlap export` on a finished run."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simlap import cli
from simlap.cli.evaluate import _datasets
from simlap.config import yaml
from simlap.data import inspect_data
from simlap.record.journal import read_cell
from simlap.run import evaluate
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.train.check import check_experiment
from simlap.train.features import extract_features
from simlap.train.world import World
from tests.tiny import TREE, tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a moving average, so that the wrong weights would show."""
    storage = Storage(tmp_path_factory.mktemp("finished"))
    experiment = tiny(train__epochs=1, train__ema_decay=0.9)
    (stage,) = check_experiment(experiment, file="x")
    task = CellTask(stage.cell_id, experiment.model_dump(mode="json"), storage.uri)
    for _ in run_cell(task, World()):
        pass
    return Path(storage.uri) / "cells" / stage.cell_id


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["simlap", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return run


def results(folder: Path) -> dict[str, dict[str, float]]:
    """Metrics by protocol and data."""
    saved = json.loads((folder / "results.json").read_text())["results"].values()
    return {" ".join(filter(None, (one["protocol"]["kind"], one["data"]))): one["metrics"] for one in saved}


def test_numbers_are_those_of_the_run(finished: Path, call, capsys: pytest.CaptureFixture[str]) -> None:
    storage, _, cell_id = finished.parent.parent, finished.parent, finished.name
    assert call("eval", cell_id, "--storage", storage, "--protocol", "knn,probe", "--protocol", "collapse") == 0
    shown = capsys.readouterr().out
    found = results(finished / "evaluations")
    view = read_cell(Storage(storage), cell_id)
    measured = {name: value for metrics in found.values() for name, value in metrics.items()}
    known = {**view.rows[-1].metrics, **view.result}
    assert {name: known[name] for name in measured} == pytest.approx(measured)
    assert measured.keys() >= view.result.keys()
    for name in (
        "test/knn_top1",
        "test/probe_top1",
        "collapse/effective_rank",
        str(finished / "evaluations/results.json"),
    ):
        assert name in shown


def test_a_checkpoint_by_its_path_and_settings(finished: Path, call, tmp_path: Path) -> None:
    (checkpoint,) = (finished / "checkpoints").glob("epoch-*")
    arguments = ("eval", checkpoint, "--protocol", "knn,linear", "--set", "linear.l2=0.01", "--set", "knn.k=[3]")
    assert call(*arguments, "--set", "knn.headline=3", "--out", "there") == 0
    found = results(tmp_path / "there")
    assert found["linear"]["linear_l2"] == 0.01
    assert set(found["knn"]) == {f"{split}/knn_top1{k}" for split in ("val", "test") for k in ("", "_k3")}
    assert call("eval", checkpoint, "--protocol", "collapse", "--out", "there") == 0
    assert set(results(tmp_path / "there")) == {"knn", "linear", "collapse"}, "earlier results stay"


def test_transfer(finished: Path, call, tmp_path: Path) -> None:
    own = {**TREE["data"], "classes": [3, 5, 8]}
    (tmp_path / "few.yaml").write_text(yaml.dump({**TREE, "data": own}))
    arguments = ("eval", finished, "--data", "few.yaml", "--data", "digits", "--out", "there")
    assert call(*arguments, "--protocol", "knn,finetune", "--set", "finetune.epochs=1") == 0
    found = results(tmp_path / "there")
    assert set(found) == {"knn few", "finetune few", "knn digits", "finetune digits"}
    assert "test/few_knn_top1" in found["knn few"]
    assert 0 < found["finetune digits"]["test/digits_finetune_top1"] <= 1


def test_features_are_extracted_once(finished: Path, call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extracted = []

    def counted(*arguments: object) -> object:
        extracted.append(arguments)
        return extract_features(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("simlap.train.evaluate.extract_features", counted)
    assert call("eval", finished, "--protocol", "knn", "--out", "there") == 0
    assert len(extracted) == 3
    assert call("eval", finished, "--protocol", "linear", "--out", "there") == 0
    assert len(extracted) == 3


def test_gates_give_a_page(finished: Path, call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--protocol", "gates", "--set", "gates.permutations=9", "--out", "there")
    assert call("eval", finished, *arguments) == 0
    assert "gates.html" in capsys.readouterr().out
    assert {"gates.html", "gates.json", "results.json"} <= {path.name for path in (tmp_path / "there").iterdir()}
    shown = json.loads((tmp_path / "there/gates.json").read_text())
    assert [epoch for epoch, _ in shown["training"]["tiny"]] == [1]


def test_numbers_that_are_no_accuracies_are_not_rounded_away(
    finished: Path, call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("eval", finished, "--protocol", "linear", "--set", "linear.l2=1e-6", "--out", "there") == 0
    rows = {row[1]: row[2] for row in (line.split() for line in capsys.readouterr().out.splitlines()) if len(row) == 3}
    assert rows["linear_l2"] == "1e-06"
    assert re.fullmatch(r"0\.\d{4}", rows["test/linear_top1"])


def test_root_is_for_those_that_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {}

    def remember(source: str, root: str | None) -> tuple[str, object]:
        named[source] = root
        return source, object()

    monkeypatch.setattr("simlap.cli.evaluate.named_data", remember)
    assert list(_datasets(["digits", "svhn"], "there")) == ["digits", "svhn"]
    assert named == {"digits": None, "svhn": "there"}


@pytest.mark.parametrize("written_by", ["run", "train"])
def test_own_data_that_have_changed(
    call, tmp_path: Path, written_by: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny(train__epochs=1, data__fraction=0.2)
    (stage,) = check_experiment(experiment, file="x")
    storage = Storage(tmp_path)
    provenance = {"data_fingerprint": stage.info.fingerprint}
    task = CellTask(stage.cell_id, experiment.model_dump(mode="json"), storage.uri, provenance)
    for _ in run_cell(task, World()):
        pass
    cell = storage.child("cells", stage.cell_id)
    if written_by == "train":  # as `simlap.train` leaves it
        cell.delete("provenance.json")
        cell.write_json("stage.json", {"schema_version": 1, "cell_id": stage.cell_id, "start": stage.start})
    assert call("eval", cell.uri, "--protocol", "knn") == 0
    before = cell.read("evaluations/results.json")
    monkeypatch.setattr(evaluate, "inspect_data", lambda data: replace(inspect_data(data), fingerprint="another"))
    assert call("eval", cell.uri, "--protocol", "knn") == cli.WRONG_INPUT
    said = capsys.readouterr().err
    assert "data.source: the data have changed since the run was trained" in said
    assert "'digits'" in said
    assert "--data" in said
    assert cell.read("evaluations/results.json") == before
    assert call("eval", cell.uri, "--protocol", "knn", "--data", "digits") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "nowhere"], ["nowhere", "no such run directory or checkpoint", "runs"]),
        (["eval", "RUN", "--protocol", "knm"], ["--protocol", "'knm'", "did you mean 'knn'", "linear"]),
        (["eval", "RUN", "--set", "knn.kk=1"], ["--set", "knn.kk", "unknown key", "headline"]),
        (["eval", "RUN", "--set", "gates.linkage=ward"], ["--set", "for a protocol that is asked for", "knn, linear"]),
        (["eval", "RUN", "--set", "linear.l2=much"], ["linear.l2", "'much'"]),
        (["eval", "RUN", "--data", "cifra10"], ["neither an experiment file", "did you mean 'cifar10'"]),
        (["eval", "RUN", "--data", "digits", "--data", "digits"], ["--data", "same name"]),
        (["eval", "RUN", "--data", "digits", "--protocol", "gates"], ["'gates'", "leave --data out", "finetune"]),
        (["eval", "RUN", "--data", "svhn", "--root", "nowhere"], ["svhn"]),
        (["eval", "RUN", "--data", "digits", "--root", "there"], ["--root", "'there'", "--data names none of them"]),
        (["eval", "RUN", "--root", "there"], ["--root", "'there'", "--data names none of them"]),
        (["eval", "RUN", "--out", "/proc/foo"], ["/proc/foo", "--out", "cannot be kept"]),
        (["eval", "RUN", "--out", "RUN/config.yaml"], ["config.yaml", "--out", "cannot be kept"]),
        (["eval", "RUN/checkpoints"], ["no run directory and no checkpoint"]),
        (["export", "RUN", "out"], ["backbone.name", "timm cannot build conv3"]),
        (["export", "nowhere", "out"], ["nowhere", "no such run directory"]),
    ],
)
def test_wrong_input(
    finished: Path, call, tmp_path: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*(word.replace("RUN", str(finished)) for word in arguments)) == cli.WRONG_INPUT
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    for word in words:
        assert word in captured.err
    assert not list(tmp_path.iterdir()), "nothing was written"
