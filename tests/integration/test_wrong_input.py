"""Wrong input: exit 2, one message with file, key, value and choices, and nothing is started."""

from __future__ import annotations

import json
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
    other = parquet(folder / "other.parquet", [0, 1] * 10)
    if kind == "missing":
        return {"source": "parquet", "train": str(folder / "nowhere.parquet"), "test": good}
    if kind == "no image column":
        pq.write_table(pa.table({"picture": [1.0], "label": [0]}), folder / "bad.parquet")
        return {"source": "parquet", "train": str(folder / "bad.parquet"), "test": good}
    if kind == "no label column":
        return {"source": "parquet", "train": good, "test": other, "label_column": "lable"}
    if kind == "one file for both parts":
        return {"source": "parquet", "train": "good.parquet", "test": good}
    if kind == "no validation image":
        return {"source": "parquet", "train": good, "test": other, "validation": {"fraction": 0.001}}
    gap = parquet(folder / "gap.parquet", [0, 2] * 50)
    return {"source": "parquet", "train": gap, "test": other}


# {checked} stands for what names the place of what shows only when everything is put together
FILES = [
    ("lr: 0.01", "lr: true", ["base.yaml", "optim.lr", "True"]),
    ("lr: 0.01", "learning_rate: 0.01", ["base.yaml", "optim.learning_rate", "unknown key", "lr"]),
    (
        "kind: gumbel",
        "kind: gumble",
        ["base.yaml", "method.gate.kind", "'gumble'", "did you mean 'gumbel'", "stochastic"],
    ),
    ("lr: 0.01", "lr: 1e-6", ["base.yaml: optim.min_lr: ", "lr (1e-06)", "1e-05"]),
    ("warmup_epochs: 1", "warmup_epochs: 4", ["base.yaml: optim.warmup_epochs: ", "train.epochs (3)", "4"]),
    ("batch_size: 128", "batch_size: 5000", ["{checked}: train.batch_size: ", "5000", "1260"]),
    ("name: conv3", "name: conv4", ["{checked}: backbone.name: ", "'conv4'", "conv3"]),
    ("- 8\n", "- eight\n", ["{checked}: backbone.kwargs.widths: ", "eight"]),
    ("batch_size: 128", "batch_size: 4\nresources: {workers: 5}", ["resources.workers: ", "5"]),
    (
        "name: tiny",
        "name: tiny\npretrain: nowhere.yaml",
        ["base.yaml: pretrain: no such experiment file", "study.yaml"],
    ),
    ("name: tiny", "name: tiny\npretrain: base.yaml", ["base.yaml: pretrain: a stage cannot start from itself"]),
    (
        "name: tiny",
        f"name: tiny\npretrain: {json.dumps({**TREE, 'train': {'batch_size': 5000}})}",
        ["{checked}: pretrain.train.batch_size: ", "5000", "1260"],
    ),
    (
        "name: tiny",
        f"name: tiny\npretrain: {json.dumps({**TREE, 'backbone': {'name': 'conv3', 'kwargs': {'widths': [2]}}})}",
        ["{checked}: pretrain: ", "do not fit"],
    ),
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
    words = [word.format(checked=CHECKED[command]) for word in words]
    check(command, text.replace(old, new), STUDY, words, tmp_path, monkeypatch, capsys)


CHECKED = {
    "run": "base.yaml",
    "ablate": "study.yaml: arm filter=gumbel",
    "plan": "study.yaml: arm filter=gumbel",
}
DATA = [
    ("missing", ["data.train: no such file", "nowhere.parquet"]),
    ("no image column", ["data.image_column: ", "bad.parquet", "image", "picture, label"]),
    ("no label column", ["data.label_column: ", "good.parquet", "lable", "did you mean 'label'", "img, label"]),
    ("a class without images", ["data.train: ", "gap.parquet", "class", "1"]),
    ("one file for both parts", ["data.test: ", "good.parquet", "training files"]),
    ("no validation image", ["data.validation.fraction: ", "good.parquet", "0.001"]),
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
    words = [f"{CHECKED[command]}: {words[0]}", *words[1:]]
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
    (
        "seeds: 1",
        "seeds: 1\nset: {train.batch_size: 1200}\nresources: {workers: 999}",
        ["study.yaml", "resources.workers", "999", "CPUs"],
    ),
    (
        "seeds: 1",
        "seeds: 1\nset: {train.batch_size: 4}\nresources: {workers: 5, cpus_per_worker: 1}",
        ["study.yaml", "resources.workers: ", "5"],
    ),
    (
        "seeds: 1",
        "seeds: 1\nset: {data.train: x, data.source: parquet}",
        ["study.yaml, set: data.test: is required"],
    ),
    (
        "seeds: 1",
        "seeds: 1\nset: {train.epochs: 10}\nmetric: {name: val/knn_top1}\nscheduler: {kind: asha, grace_epochs: 2}",
        ["study.yaml: metric.name: ", "'val/knn_top1'", "asha decides (2, 6)", "evaluate.0.every_epochs is null"],
    ),
    (
        "seeds: 1",
        "seeds: 1\nset: {train.epochs: 10, evaluate.1.every_epochs: 4}\nscheduler: {kind: asha, grace_epochs: 4, "
        "reduction_factor: 2}\nmetric: {name: val/knn_top1}",
        ["study.yaml: metric.name: ", "asha decides (4, 8)", "evaluate.0.every_epochs is null"],
    ),
    (
        "seeds: 1",
        "seeds: 1\nset: {train.epochs: 10, evaluate.1.every_epochs: 4}\nscheduler: {kind: asha, grace_epochs: 2}",
        ["study.yaml: metric.name: ", "'val/probe_top1'", "asha decides (2, 6)", "evaluate.1.every_epochs is 4"],
    ),
    *(
        (
            "path: method.gate.kind, levels: [gumbel, open]",
            f"path: {path}, levels: {{gumbel: {one}, open: {other}}}",
            ["study.yaml: factors.filter.path: cannot be a factor: ", reason, repr(path)],
        )
        for path, one, other, reason in [
            ("seed", 1, 2, "`seeds` vary it"),
            ("name", "a", "b", "label for people"),
            ("checkpoint.keep", 2, 3, "state"),
            ("evaluate.0.every_epochs", 1, 2, "id of its own"),
            ("evaluate", "[]", "[]", "id of its own"),
        ]
    ),
    (
        "path: method.gate.kind, levels: [gumbel, open]",
        "path: resources.workers, levels: {gumbel: 1, open: 2}",
        ["study.yaml: arm filter=open: is the same experiment as arm 'filter=gumbel'"],
    ),
    *(
        (
            "open]}}\nbaseline: {filter: gumbel}",
            f"open]}}, other: {{path: {path}, levels: [{level}]}}}}\nbaseline: {{filter: gumbel, other: {level}}}",
            ["study.yaml: factors.other.path: changes the same place as factors.filter.path", repr(path)],
        )
        for path, level in [("method.gate.kind", "open"), ("method.gate", "1")]
    ),
    (
        "open]}}\nbaseline: {filter: gumbel}",
        "open]}, other: {path: method, levels: [1]}}\nbaseline: {filter: gumbel, other: 1}",
        ["study.yaml, factors.other.levels.1: method", "1"],
    ),
    (
        "path: method.gate.kind, levels: [gumbel, open]",
        "path: pretrain, levels: {gumbel: null, open: nowhere.yaml}",
        ["nowhere.yaml: no such file", "base.yaml"],
    ),
    (
        "path: method.gate.kind, levels: [gumbel, open]",
        "path: pretrain.seed, levels: {gumbel: 1, open: 2}",
        ["study.yaml: factors.filter.path: cannot be a factor: ", "`seeds` vary it"],
    ),
    ("seeds: 1", "seeds: 1\ndesign: list", ["study.yaml: arms: is required with design: list"]),
    ("seeds: 1", "seeds: 1\nmetric: {report: test/linear_top1}", ["study.yaml: metric.report: ", "test/knn_top1"]),
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
    assert old in STUDY
    check(command, yaml.dump(TREE), STUDY.replace(old, new), words, tmp_path, monkeypatch, capsys)


def test_more_workers_than_can_be_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = yaml.dump({**TREE, "train": {"epochs": 1, "batch_size": 1200}, "resources": {"workers": 999}})
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
        ["eval"],
        ["eval", "nothing"],
        ["eval", "nothing", "--protocol", "knm"],
        ["export", "nothing"],
        ["export", "nothing", "out"],
        ["data", "nothing"],
        ["data", "nowhere.yaml"],
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
