"""Wrong input names the file, the key, the value and the choices."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from simlap.config import Experiment, load_experiment, override, validate, yaml
from simlap.config.schema import KNN, Gates, ParquetData
from simlap.errors import ConfigError

GOOD = """
name: x
data: {source: digits}
method: {kind: simlap, gate: {kind: sigmoid}}
optim: {lr: 1e-3}
train: {epochs: 3}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("lr: 1e-3", "lr: true", ["optim.lr", "valid number", "True"]),
        ("lr: 1e-3", "Lr: 1", ["optim.Lr", "unknown key", "weight_decay"]),
        ("lr: 1e-3", "momentun: 0.9", ["optim.momentun", "did you mean 'momentum'"]),
        ("kind: sigmoid", "kind: sigmod", ["method.gate.kind", "'sigmod'", "did you mean 'sigmoid'", "stochastic"]),
        ("kind: sigmoid", "kind: open, hidden_dim: 3", ["method.gate.hidden_dim", "unknown key", "Valid: kind."]),
        ("{source: digits}", "{source: mnist}", ["data.source", "'mnist'", "digits, parquet"]),
        ("{source: digits}", "{source: parquet}", ["data.train", "is required"]),
        ("epochs: 3", 'epochs: "3"', ["train.epochs", "valid integer", "'3'"]),
        ("epochs: 3", "epochs: 0", ["train.epochs", "greater than or equal to 1"]),
        ("epochs: 3", "epochs: .nan", ["train.epochs", "finite"]),
        (
            "train:",
            "backbone: {kwargs: {a: [1, {b: -.inf}]}}\ntrain:",
            ["backbone.kwargs.a.1.b: must be a finite number"],
        ),
        ("train:", "backbone: {kwargs: {a: 1e999}}\ntrain:", ["backbone.kwargs.a: must be a finite number"]),
        ("name: x", 'name: ""', ["name:", "at least 1 character"]),
        ("epochs: 3", "epochs: 1", ["optim.warmup_epochs: must not be more than train.epochs (1) (got 2.0)"]),
        ("lr: 1e-3", "lr: 1e-5", ["optim.min_lr: must be less than lr (1e-05)", "got 1e-05"]),
        ("lr: 1e-3", "lr: 1e-3, warmup_lr: 1", ["optim.warmup_lr: must not be more than lr (0.001)", "got 1.0"]),
        (
            "{source: digits}",
            "{source: digits, repeated_augmentation: 256}",
            ["data.repeated_augmentation: must be less than train.batch_size (256)", "two different images"],
        ),
        (
            "{source: digits}",
            "{source: digits, augment: {crop_scale: [0.5, 0.1]}}",
            ["data.augment.crop_scale: must be 0 < lowest <= highest (got [0.5, 0.1])"],
        ),
        ("train:", "evaluate: [{kind: probe}, {kind: probe}]\ntrain:", ["evaluate.1.kind: is given twice", "'probe'"]),
        (
            "train:",
            "evaluate: [{kind: probe}, {kind: knn, k: [1, 5], headline: 4}]\ntrain:",
            ["evaluate.1.headline: must be one of k = [1, 5] (got 4)"],
        ),
        (
            "train:",
            "evaluate: [{kind: knn, k: [50]}]\ntrain:",
            ["evaluate.0.headline: must be given, one of k = [50]: all are more than 20"],
        ),
        (
            "{source: digits}",
            "{source: stl10, eval_size: 64}",
            ["data.eval_size: must not be less than image_size (96) (got 64)"],
        ),
        ("{source: digits}", "{source: digits, mean: [0.5]}", ["data.std: must be given together with mean"]),
        (
            "{source: digits}",
            "{source: digits, mean: [0.5], std: [1.0, 2.0]}",
            ["data.std: must have as many values as mean (1) (got [1.0, 2.0])"],
        ),
        ("{source: digits}", "{source: digits, classes: [1, 2, 1]}", ["data.classes: names a class twice"]),
        ("{source: digits}", "{source: digits, fraction: 0}", ["data.fraction", "greater than 0"]),
        (
            "{source: digits}",
            "{source: digits, sampling: {kind: pk, classes: 4, images: 8}}",
            ["train.batch_size: must be data.sampling.classes x data.sampling.images (4 x 8) (got 256)"],
        ),
        (
            "{source: digits}",
            "{source: digits, repeated_augmentation: 2, sampling: {kind: pk, classes: 4, images: 64}}",
            ["data.repeated_augmentation: must be 1 with sampling.kind: pk (got 2)"],
        ),
        (
            "{source: digits}",
            "{source: digits, augment: {rand_augment: rand-m9, three_augment: true}}",
            ["data.augment.three_augment: is an alternative to rand_augment"],
        ),
        (
            "{source: digits}",
            "{source: digits, augment: {mixup: 0.8}}",
            ["data.augment.mixup: mixes labels, which method.kind: simlap cannot use"],
        ),
        ("kind: sigmoid", "kind: sign", ["method.gate.kind: needs the classifier of method.kind: fuse (got 'sign')"]),
        (
            "{kind: simlap, gate: {kind: sigmoid}}",
            "{kind: simclr}",
            ["data.augment.views: must be 2 or more with method.kind: simclr"],
        ),
        (
            "{kind: simlap, gate: {kind: sigmoid}}",
            "{kind: supcon, variant: one_to_one}",
            ["data.sampling.kind: must be pk with method.variant: one_to_one (got 'uniform')"],
        ),
        (
            "{kind: simlap, gate: {kind: sigmoid}}",
            "{kind: supcon}\nevaluate: [{kind: gates}]",
            ["evaluate.0.kind: there are no gates with method.kind: supcon"],
        ),
        (
            "train:",
            "evaluate: [{kind: transfer, data: {a: {source: digits, augment: {flip: 2}}}}]\ntrain:",
            ["evaluate.0.data.a.augment.flip: input should be less than or equal to 1 (got 2)"],
        ),
        (
            "train:",
            "evaluate: [{kind: transfer, data: {a b: {source: digits}}}]\ntrain:",
            ["evaluate.0.data: names of datasets are made of letters, digits, - and _ (got 'a b')"],
        ),
        (
            "train:",
            "backbone: {frozen_norm: true}\ntrain:",
            ["backbone.frozen_norm: needs backbone.weights or pretrain", "got True"],
        ),
        ("train:", "pretrain: {name: y}\ntrain:", ["pretrain.data: is required"]),
        (
            "train:",
            "backbone: {weights: a}\npretrain: {name: y, data: {source: digits}}\ntrain:",
            ["backbone.weights: cannot be given together with pretrain"],
        ),
        ("train:", "pretrain: y.yaml\ntrain:", ["pretrain: no such experiment file", "y.yaml"]),
        ("train:", "pretrain: x.yaml\ntrain:", ["pretrain: a stage cannot start from itself"]),
        ("name: x", "nam: x", ["nam: unknown key", "did you mean 'name'"]),
        ("lr: 1e-3", "lr: 1e-3, lr: 2", ["'lr' is given twice", "line 5"]),
        ("lr: 1e-3", "lr: [1", ["not valid YAML", "line"]),
        ("lr: 1e-3", "lr: &a 1e-3, min_lr: *a", ["line 5, column 30", "alias *a", "not allowed"]),
        ("lr: 1e-3", "lr: !!float 1", ["line 5", "tag", "not allowed"]),
        ("lr: 1e-3", "lr: " + "[" * 1500, ["not valid YAML", "too deeply"]),
        ("lr: 1e-3", "lr: " + "9" * 5000, ["not valid YAML", "digits"]),
    ],
)
def test_wrong_input(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as raised:
        load_experiment(path)
    for word in [str(path), *words]:
        assert word in str(raised.value)


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"no such file.*Valid: x.yaml"):
        load_experiment(tmp_path / "y.yaml")


def test_override_changes_and_validates(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, GOOD), ["optim.lr=3e-2", "backbone.kwargs.widths=[4, 8]"])
    assert experiment.optim.lr == 0.03
    assert experiment.backbone.kwargs == {"widths": [4, 8]}


def test_override_of_a_kind_replaces_the_node(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("kind: sigmoid", "kind: gumbel, hard: true, hidden_dim: 7"))
    changed = load_experiment(path, ["method.gate.kind=open"]).model_dump()
    assert changed["method"]["gate"] == {"kind": "open"}
    again = load_experiment(path, ["method.gate.kind=gumbel"]).model_dump()
    assert again["method"]["gate"]["hidden_dim"] == 7, "the same kind keeps its settings"


@pytest.mark.parametrize("changes", permutations(["data.source=parquet", "data.train=x", "data.test=y"]))
def test_overrides_are_validated_together_in_any_order(tmp_path: Path, changes: tuple[str, ...]) -> None:
    data = load_experiment(write(tmp_path, GOOD), changes).data
    assert isinstance(data, ParquetData)
    assert (Path(data.train).name, Path(data.test).name) == ("x", "y")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["optim.lr=1", "optim.lr=2"], {"optim": {"lr": 2}}),
        (["method.gate={kind: open}", "method.gate.kind=gumbel"], {"method": {"gate": {"kind": "gumbel"}}}),
        (["method.gate.hidden_dim=7", "method.gate={kind: gumbel}"], {"method": {"gate": {"hidden_dim": 7}}}),
        (["train.epochs=1", "optim.warmup_epochs=1"], {"train": {"epochs": 1}}),
        (["optim.lr=1e-6", "optim.min_lr=0", "optim.warmup_lr=0"], {"optim": {"lr": 1e-6}}),
        (["data.source=parquet", "data.train=/x", "data.test=/y", "data.augment.flip=0"], {"data": {"train": "/x"}}),
        (["backbone.kwargs.a.b=1", "backbone.kwargs.kind=2"], {"backbone": {"kwargs": {"a": {"b": 1}, "kind": 2}}}),
        (["evaluate.0.every_epochs=2"], {"evaluate": {0: {"kind": "knn", "every_epochs": 2}}}),
        (
            ["evaluate.1.kind=knn", "evaluate.0.kind=collapse", "evaluate.2.kind=probe"],
            {"evaluate": {2: {"kind": "probe"}}},
        ),
        (["data.augment.crop_scale.0=0.5"], {"data": {"augment": {"crop_scale": {0: 0.5, 1: 1.0}}}}),
    ],
)
def test_several_overrides(tmp_path: Path, changes: list[str], expected: Any) -> None:
    def holds(tree: Any, part: Any) -> None:
        if isinstance(part, dict):
            for key, inner in part.items():
                holds(tree[key], inner)
        else:
            assert tree == part

    holds(load_experiment(write(tmp_path, GOOD), changes).model_dump(mode="json"), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["method.gat.kind=open"], ["method.gat.kind", "'gat'", "did you mean 'gate'"]),
        (["seed.x=1"], ["seed.x", "plain value"]),
        (["seed=1", "seed.x=1"], ["seed.x", "plain value"]),
        (["optim.lr"], ["written a.b=value"]),
        (["train.epochs=-1"], ["command line: train.epochs:", "-1"]),
        (["seed=1", "train.epochs=-1"], ["command line: train.epochs:", "-1"]),
        (["data.source=parquet", "data.train=x"], ["command line: data.test: is required"]),
        (["data.source=parquet", "data.trian=x"], ["command line: data.trian: unknown key", "did you mean 'train'"]),
        (
            ["train.epochs=1"],
            ["command line: train.epochs: optim.warmup_epochs: must not be more than train.epochs (1)"],
        ),
        (["evaluate.kind=knn"], ["evaluate.kind", "evaluate, which is a list", "Valid: 0, 1, 2."]),
        (["evaluate.3.kind=knn"], ["evaluate.3.kind", "'3'", "which is a list", "Valid: 0, 1, 2."]),
        (["evaluate.-1.kind=knn"], ["evaluate.-1.kind", "which is a list"]),
        (["evaluate.1.kind=knn"], ["evaluate.1.kind", "given twice"]),
        (["backbone.kwargs.x=.nan"], ["command line: backbone.kwargs.x", "finite"]),
    ],
)
def test_wrong_override(tmp_path: Path, changes: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_experiment(write(tmp_path, GOOD), changes)
    for word in words:
        assert word in str(raised.value)


def test_errors_name_the_place_of_the_change() -> None:
    experiment = validate(Experiment, {"name": "x", "data": {"source": "digits"}})
    with pytest.raises(ConfigError, match=r"^study.yaml, set: optim.lr: "):
        override(experiment, [("optim.lr", "x"), ("seed", 1)], file="study.yaml", where="set")
    with pytest.raises(ConfigError, match=r"^study.yaml, set: train.epochs, seed: optim.warmup_epochs: "):
        override(experiment, [("train.epochs", 1), ("seed", 1)], file="study.yaml", where="set")


@pytest.mark.parametrize(
    "optim",
    [
        {"lr": 1e30},
        {"lr": 1e-9, "schedule": "constant", "warmup_epochs": 0},
        {"lr": 1e-9, "min_lr": 0, "warmup_epochs": 0},
        {"warmup_epochs": 50},
    ],
)
def test_unusual_but_sound_schedules(optim: dict[str, Any]) -> None:
    kept = validate(Experiment, {"name": "x", "data": {"source": "digits"}, "optim": optim}).optim
    assert {name: getattr(kept, name) for name in optim} == optim


def test_the_headline_is_the_largest_k_up_to_20() -> None:
    def headline(**fields: Any) -> int:
        return validate(KNN, {"kind": "knn", **fields}).headline_k

    assert headline() == 20
    assert headline(k=[1, 5, 50]) == 5
    assert headline(k=[1, 5, 20, 50]) == 20
    assert headline(k=[50], headline=50) == 50
    knn = validate(KNN, {"kind": "knn", "k": [1, 5]})
    assert validate(KNN, knn.model_dump(mode="json")) == knn, "it survives being written and read"


def test_other_neighbourhoods_have_their_own_headline(tmp_path: Path) -> None:
    """A default that is settled for one list of k must not be taken as given for another."""
    path = write(tmp_path, GOOD.replace("train:", "evaluate: [{kind: knn, k: [1, 5]}]\ntrain:"))
    (knn,) = load_experiment(path, ["evaluate.0.k=[1, 10]"]).evaluate
    assert isinstance(knn, KNN)
    assert (knn.k, knn.headline, knn.headline_k) == ((1, 10), None, 10)


def test_any_group_may_be_set_in_a_hierarchy(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("train:", "evaluate: [{kind: gates, hierarchy: {a: ['1']}}]\ntrain:"))
    (gates,) = load_experiment(path, ["evaluate.0.hierarchy.b.c=['2']"]).evaluate
    assert isinstance(gates, Gates)
    assert gates.hierarchy == {"a": ["1"], "b": {"c": ["2"]}}


@pytest.mark.parametrize(
    "start", [{"backbone.weights": "a"}, {"pretrain": {"name": "y", "data": {"source": "digits"}}}]
)
def test_a_batch_norm_is_frozen_where_it_has_learnt(start: dict[str, Any]) -> None:
    plain = validate(Experiment, {"name": "x", "data": {"source": "digits"}})
    assert override(plain, [*start.items(), ("backbone.frozen_norm", True)]).backbone.frozen_norm


def test_local_data_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD.replace("{source: digits}", "{source: parquet, train: ../a, test: ~/b}"))
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    monkeypatch.setenv("HOME", "/home/someone")
    data = load_experiment(path).data
    assert isinstance(data, ParquetData)
    assert (data.train, data.test) == (str(tmp_path / "a"), "/home/someone/b")
    data = load_experiment(path, ["data.train=s3://bucket/a", "data.test=c"]).data
    assert isinstance(data, ParquetData)
    assert (data.train, data.test) == ("s3://bucket/a", str(tmp_path / "inner" / "c"))


def test_precision_is_resolved_from_the_file() -> None:
    experiment = validate(Experiment, {"name": "x", "data": {"source": "digits"}})
    assert experiment.precision == "fp32"
    assert override(experiment, [("resources.gpus_per_worker", 0.5)]).precision == "bf16"
    assert override(experiment, [("train.precision", "bf16")]).precision == "bf16"


@pytest.mark.parametrize(("source", "size"), [("cifar100", 32), ("fashion_mnist", 28), ("stl10", 96), ("food101", 224)])
def test_a_dataset_brings_its_image_size(source: str, size: int) -> None:
    tree: dict[str, Any] = {"name": "x", "data": {"source": source}}
    experiment = validate(Experiment, tree)
    assert experiment.data.image_size == size
    assert override(experiment, [("seed", 1)]).data == override(experiment, []).data
    assert override(experiment, [("data.image_size", 48)]).data.image_size == 48


def test_local_paths_become_absolute_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree = {
        "name": "x",
        "data": {"source": "folder", "train": "a", "test": "s3://b/c"},
        "backbone": {"weights": "w.safetensors"},
        "evaluate": [{"kind": "transfer", "data": {"other": {"source": "cifar10", "root": "d"}}}],
    }
    path = write(tmp_path, yaml.dump(tree))
    experiment = load_experiment(path)
    plain = experiment.model_dump(mode="json")
    assert (plain["data"]["train"], plain["data"]["test"]) == (str(tmp_path / "a"), "s3://b/c")
    assert plain["backbone"]["weights"] == str(tmp_path / "w.safetensors")
    assert plain["evaluate"][0]["data"]["other"]["root"] == str(tmp_path / "d")
