"""Experiment files that start from other experiment files."""

from __future__ import annotations

from pathlib import Path

import pytest

from simlap.config import load_experiment, override
from simlap.errors import ConfigError

GOOD = """
name: x
data: {source: digits}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return path


STAGE = """
name: stage
seed: 7
data: {source: digits}
backbone: {name: conv3, kwargs: {widths: [4]}}
train: {epochs: 4}
"""


def test_a_stage_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "stage.yaml").write_text(STAGE)
    path = write(tmp_path, GOOD + "pretrain: stage.yaml\nseed: 3\n")
    experiment = load_experiment(path, ["pretrain.train.epochs=5", "backbone.kwargs.widths=[4]"])
    assert [stage.name for stage in experiment.stages] == ["stage", "x"]
    assert experiment.backbone.name == "conv3", "taken from the stage"
    assert experiment.pretrain is not None
    assert (experiment.pretrain.seed, experiment.pretrain.train.epochs) == (3, 5)
    assert [stage.seed for stage in experiment.with_seed(9).stages] == [9, 9]
    assert [stage.seed for stage in override(experiment, [("seed", 8)]).stages] == [8, 8]
    with pytest.raises(ConfigError, match=r"pretrain.seed: is the experiment's \(3\)"):
        override(experiment, [("pretrain.seed", 4)])


def test_another_stage_may_be_named_in_an_override(tmp_path: Path) -> None:
    (tmp_path / "stage.yaml").write_text(STAGE)
    (tmp_path / "other.yaml").write_text(STAGE.replace("name: stage", "name: other"))
    experiment = load_experiment(write(tmp_path, GOOD + "pretrain: stage.yaml\n"))
    changed = override(experiment, [("pretrain", "other.yaml")], folder=tmp_path)
    assert [stage.name for stage in changed.stages] == ["other", "x"]
    with pytest.raises(ConfigError, match="no such file"):
        override(experiment, [("pretrain", "missing.yaml")], folder=tmp_path)


def test_stages_of_one_chain_have_one_backbone(tmp_path: Path) -> None:
    (tmp_path / "stage.yaml").write_text(STAGE)
    path = write(tmp_path, GOOD + "pretrain: stage.yaml\nbackbone: {name: resnet18}\n")
    with pytest.raises(ConfigError, match=r"backbone.name: must be that of pretrain \(conv3\)"):
        load_experiment(path)


def test_a_chain_of_files_must_not_be_a_circle(tmp_path: Path) -> None:
    (tmp_path / "stage.yaml").write_text(STAGE + "pretrain: x.yaml\n")
    path = write(tmp_path, GOOD + "pretrain: stage.yaml\n")
    with pytest.raises(ConfigError, match=r"stage.yaml.*pretrain: a stage cannot start from itself"):
        load_experiment(path)
