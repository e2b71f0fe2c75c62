"""Wrong input: exit 2, one message with file, key, value and choices, and nothing is started."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simlap import cli
from simlap.config import yaml
from simlap.run import cluster
from tests.tiny import TREE

STUDY = """
name: small
base: base.yaml
factors: {filter: {path: method.gate.kind, levels: [gumbel, open]}}
baseline: {filter: gumbel}
seeds: 1
"""


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(cluster, "connect", refuse)
    monkeypatch.setattr("simlap.run.single.connect", refuse)
    monkeypatch.setattr("simlap.study.apply.connect", refuse)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["simlap", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def parquet(path: Path, labels: list[int], **columns: pa.Array) -> str:
    image = pa.array(
        [{"bytes": b"", "path": "x"}] * len(labels), pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    pq.write_table(pa.table({"img": image, "label": labels, **columns}), path)
    return str(path)


def wrong_data(kind: str, folder: Path) -> dict[str, object]:
    good = parquet(folder / "good.parquet", [0, 1] * 50)
    if kind == "missing":
        return {"source": "parquet", "train": str(folder / "nowhere.parquet"), "test": good}
    if kind == "no image column":
        pq.write_table(pa.table({"picture": [1.0], "label": [0]}), folder / "bad.parquet")
        return {"source": "parquet", "train": str(folder / "bad.parquet"), "test": good}
    if kind == "no label column":
        return {"source": "parquet", "train": good, "test": good, "label_column": "lable"}
    bad = parquet(folder / "gap.parquet", [0, 2] * 50)
    return {"source": "parquet", "train": bad, "test": bad}


FILES = [
    ("lr: 0.01", "lr: true", ["base.yaml", "optim.lr", "True"]),
    ("lr: 0.01", "learning_rate: 0.01", ["base.yaml", "optim.learning_rate", "unknown key", "lr"]),
    (
        "kind: gumbel",
        "kind: gumble",
        ["base.yaml", "method.gate.kind", "'gumble'", "did you mean 'gumbel'", "stochastic"],
    ),
    ("batch_size: 128", "batch_size: 5000", ["batch", "5000", "1260"]),
    ("name: conv3", "name: conv4", ["backbone.name", "'conv4'"]),
]


@pytest.mark.parametrize("command", ["run", "ablate", "plan"])
@pytest.mark.parametrize(("old", "new", "words"), FILES)
def test_experiment_file(
    command: str,
    old: str,
    new: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = yaml.dump(TREE)
    assert old in text
    check(command, text.replace(old, new), STUDY, words, tmp_path, monkeypatch, capsys)


DATA = [
    ("missing", ["nowhere.parquet"]),
    ("no image column", ["bad.parquet", "image", "picture, label"]),
    ("no label column", ["good.parquet", "lable", "label"]),
    ("a class without images", ["gap.parquet", "class", "1"]),
]


@pytest.mark.parametrize("command", ["run", "ablate"])
@pytest.mark.parametrize(("kind", "words"), DATA)
def test_data(
    command: str,
    kind: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = yaml.dump({**TREE, "data": wrong_data(kind, tmp_path)})
    check(command, text, STUDY, words, tmp_path, monkeypatch, capsys)


STUDIES = [
    ("method.gate.kind", "method.gat.kind", ["study.yaml", "factors.filter", "'gat'", "did you mean 'gate'"]),
    (
        "baseline: {filter: gumbel}",
        "baseline: {filter: sigmoid}",
        ["study.yaml", "baseline.filter", "'sigmoid'", "gumbel, open"],
    ),
    (
        "baseline:",
        "exclude: [{filter: gumbel}]\nbaseline:",
        ["study.yaml", "baseline is not among the arms", "filter=open"],
    ),
    ("seeds: 1", "seeds: 1\nresources: {workers: 999}", ["study.yaml", "resources.workers", "999", "CPUs"]),
    ("seeds: 1", "seed: 1", ["study.yaml", "unknown key", "seeds"]),
]


@pytest.mark.parametrize("command", ["ablate", "plan"])
@pytest.mark.parametrize(("old", "new", "words"), STUDIES)
def test_study_file(
    command: str,
    old: str,
    new: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check(command, yaml.dump(TREE), STUDY.replace(old, new), words, tmp_path, monkeypatch, capsys)


def test_more_workers_than_can_be_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = yaml.dump({**TREE, "resources": {"workers": 999}})
    check("run", text, STUDY, ["base.yaml", "resources.workers", "999", "CPUs"], tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["rum"],
        ["run"],
        ["run", "nowhere.yaml"],
        ["run", "--fast", "x.yaml"],
        ["status", "nothing"],
        ["sync", "nothing"],
    ],
)
def test_command_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments) == cli.WRONG_INPUT
    assert "error:" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def check(
    command: str,
    experiment: str,
    study: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "base.yaml").write_text(experiment)
    (tmp_path / "study.yaml").write_text(study)
    monkeypatch.chdir(tmp_path)
    code = call(monkeypatch, command, "base.yaml" if command == "run" else "study.yaml")
    captured = capsys.readouterr()
    assert code == cli.WRONG_INPUT, captured
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    for word in words:
        assert word in captured.err
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "mlflow.db").exists()
