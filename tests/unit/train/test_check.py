"""What is wrong with an experiment is said before it starts, with the file and the key."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from simlap.config import cell_id
from simlap.config.schema import Transfer
from simlap.data.splits import DataInfo, inspect_data
from simlap.errors import ConfigError, DataError, UserError
from simlap.evaluate.mantel import MAX_OBJECTS
from simlap.nn.backbone import Conv3
from simlap.train import check
from simlap.train.check import check_experiment
from tests.tiny import tiny


def refused(**changes: Any) -> UserError:
    with pytest.raises(UserError) as raised:
        check_experiment(tiny(**changes), file="x.yaml")
    assert str(raised.value).startswith("x.yaml: ")
    return raised.value


def test_the_dataset_is_looked_at_once() -> None:
    inspected: dict[str, DataInfo] = {}
    (stage,) = check_experiment(tiny(), file="x.yaml", inspected=inspected)
    assert (stage.info.channels, stage.info.num_classes) == (1, 10)
    (again,) = check_experiment(tiny(seed=1), file="x.yaml", inspected=inspected)
    assert again.info is stage.info
    assert list(inspected.values()) == [stage.info]


# --- stages ----------------------------------------------------------------------------------------------------------


def stages(**changes: Any) -> Any:
    """A fine-tuning of a fine-tuning of the small experiment."""
    first = tiny(name="first")
    second = tiny(name="second", pretrain=first.model_dump(mode="json"), method__kind="supervised")
    return tiny(name="third", pretrain=second.model_dump(mode="json"), method__kind="supervised", **changes)


def test_stages_in_the_order_they_run() -> None:
    found = check_experiment(stages(), file="x.yaml")
    assert [stage.experiment.name for stage in found] == ["first", "second", "third"]
    assert [stage.start for stage in found] == [None, found[0].cell_id, found[1].cell_id]
    assert found[1].cell_id == cell_id(found[1].experiment, found[1].info.fingerprint, found[0].cell_id)
    assert len({stage.cell_id for stage in found}) == 3, "what a stage starts from is part of its identity"
    (alone,) = check_experiment(tiny(), file="x.yaml")
    assert alone.cell_id == found[0].cell_id, "a stage is shared with whom runs it for itself"


def test_an_earlier_stage_is_named_as_the_file_has_it() -> None:
    wrong = stages(pretrain__pretrain__optim__name="adamm")
    with pytest.raises(ConfigError) as raised:
        check_experiment(wrong, file="x.yaml")
    assert raised.value.key == "pretrain.pretrain.optim.name"
    assert str(raised.value).startswith("x.yaml: pretrain.pretrain.optim.name: unknown optimiser")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"backbone__kwargs": {"widths": [4, 9]}}, "pretrain"),
        ({"backbone__kwargs": {"widths": [4, 8, 8]}}, "pretrain"),
        ({"pretrain__backbone__kwargs": {"widths": [5, 8]}}, "pretrain.pretrain"),
    ],
)
def test_a_stage_that_does_not_fit_the_one_before(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match="do not fit the backbone") as raised:
        check_experiment(stages(**changes), file="x.yaml")
    assert raised.value.key == key


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_read_and_count_by_their_content(tmp_path: Path) -> None:
    ids = []
    for i, seed in enumerate((1, 2, 2)):
        torch.manual_seed(seed)
        save_file(Conv3(1, (4, 8)).state_dict(), tmp_path / f"{i}.safetensors")
        (stage,) = check_experiment(tiny(backbone__weights=str(tmp_path / f"{i}.safetensors")), file="x.yaml")
        assert stage.start is not None
        assert stage.start.startswith("weights:")
        ids.append(stage.cell_id)
    assert ids[0] != ids[1] == ids[2]


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    marks = []
    for i in range(2):
        save_file({name: value + i for name, value in Conv3(1, (4, 8)).state_dict().items()}, path)
        os.utime(path, (i, i))
        marks.append(check_experiment(tiny(backbone__weights=str(path)), file="x.yaml")[0].start)
    assert marks[0] != marks[1]


def test_weights_that_do_not_fit_or_are_not_there(tmp_path: Path) -> None:
    path = str(tmp_path / "a.safetensors")
    error = refused(backbone__weights=path)
    assert (error.key, error.value) == ("backbone.weights", path)
    save_file(Conv3(1, (5, 8)).state_dict(), path)
    error = refused(backbone__weights=path)
    assert error.key == "backbone.weights"
    assert "0.weight (5, 1, 3, 3) instead of (4, 1, 3, 3)" in str(error)


# --- one stage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"optim__name": "adamm"}, "optim.name", "adamm"),
        ({"optim__kwargs": {"betta": 1}}, "optim.kwargs", {"betta": 1}),
        ({"data__augment__rand_augment": "rand-m9-foo5"}, "data.augment.rand_augment", "rand-m9-foo5"),
        (
            {"evaluate": [{"kind": "probe"}, {"kind": "gates", "hierarchy": {"a": ["0", "1"], "b": ["x"]}}]},
            "evaluate.1.hierarchy.b",
            "x",
        ),
        ({"data__fingerprint": "abc"}, "data.fingerprint", "abc"),
        ({"train__loss": "fused"}, "train.loss", "fused"),
        ({"train__keys": "ring", "train__loss": "plain"}, "train.loss", "plain"),
        (
            {"data__sampling": {"kind": "pk", "classes": 8, "images": 200}, "train__batch_size": 1600},
            "data.sampling.images",
            200,
        ),
    ],
)
def test_wrong_settings(changes: dict[str, Any], key: str, value: object) -> None:
    error = refused(**changes)
    assert error.key is not None
    assert error.key.startswith(key)
    assert value is None or error.value == value


def test_datasets_to_transfer_to(tmp_path: Path) -> None:
    data = {"source": "parquet", "train": str(tmp_path / "a"), "test": str(tmp_path / "b")}
    error = refused(evaluate=[{"kind": "probe"}, {"kind": "transfer", "data": {"other": data}}])
    assert isinstance(error, DataError)
    assert error.key == "evaluate.1.data.other.train"


def test_datasets_to_transfer_to_get_their_fingerprints() -> None:
    protocols = [{"kind": "probe"}, {"kind": "transfer", "data": {"other": {"source": "digits", "fraction": 0.5}}}]
    given = tiny(evaluate=protocols)
    (stage,) = check_experiment(given, file="x.yaml")
    transfer = stage.experiment.evaluate[1]
    assert isinstance(transfer, Transfer)
    assert transfer.data["other"].fingerprint == stage.info.fingerprint
    assert stage.experiment.data.fingerprint is None
    assert stage.cell_id == cell_id(given, stage.info.fingerprint)
    (again,) = check_experiment(stage.experiment, file="x.yaml")
    assert again.experiment == stage.experiment, "what a record holds is accepted"
    protocols[1]["data"]["other"]["fingerprint"] = "abc"  # type: ignore[index]
    error = refused(evaluate=protocols)
    assert isinstance(error, DataError)
    assert (error.key, error.value) == ("evaluate.1.data.other.fingerprint", "abc")
    assert stage.info.fingerprint in str(error)


def test_the_augmentation_of_a_fine_tuning_elsewhere() -> None:
    """It is the other dataset's own, and needed only where something is fine-tuned on it."""
    for augment, key in (
        ({"rand_augment": "rand-m9-foo5"}, "rand_augment"),
        ({"pipeline": "timm", "rotate": 5.0}, "rotate"),
    ):
        transfer: dict[str, Any] = {"kind": "transfer", "data": {"other": {"source": "digits", "augment": augment}}}
        check_experiment(tiny(evaluate=[transfer]), file="x.yaml")
        error = refused(evaluate=[{"kind": "probe"}, {**transfer, "protocols": [{"kind": "finetune"}]}])
        assert isinstance(error, ConfigError)
        assert (error.key, error.value) == (f"evaluate.1.data.other.augment.{key}", augment[key])


@pytest.mark.parametrize("classes", [1, MAX_OBJECTS + 1])
def test_gates_of_too_few_or_too_many_classes(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = [{"kind": "probe"}, {"kind": "gates"}]
    found = inspect_data(tiny().data)
    for count in (2, MAX_OBJECTS, classes):
        names = tuple(map(str, range(count)))
        info = dataclasses.replace(found, class_names=names, class_sizes=(200,) * count)
        monkeypatch.setattr(check, "inspect_data", lambda _, info=info: info)
        check_experiment(tiny(), file="x.yaml")
        if count != classes:
            check_experiment(tiny(evaluate=gates), file="x.yaml")
    error = refused(evaluate=gates)
    assert isinstance(error, ConfigError)
    assert (error.key, error.value) == ("evaluate.1.kind", "gates")
    assert f"2 to {MAX_OBJECTS} classes; the dataset has {classes}" in str(error)


def test_more_workers_than_rows() -> None:
    check_experiment(tiny(resources__workers=128), file="x.yaml")
    error = refused(resources__workers=129)
    assert isinstance(error, ConfigError)
    assert (error.key, error.value) == ("resources.workers", 129)
    assert "train.batch_size 128" in str(error)


def test_a_batch_larger_than_the_data() -> None:
    error = refused(train__batch_size=5000)
    assert isinstance(error, DataError)
    assert (error.key, error.value) == ("train.batch_size", 5000)


def test_missing_data(tmp_path: Path) -> None:
    error = refused(data={"source": "parquet", "train": str(tmp_path / "a"), "test": str(tmp_path / "b")})
    assert isinstance(error, DataError)
    assert error.key == "data.train"


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"backbone": {"name": "conv4"}}, "backbone.name", ["conv3"]),
        ({"backbone": {"name": "resnet18", "kwargs": {"widht": 3}}}, "backbone.kwargs", ["widht"]),
        (
            {"backbone": {"name": "inception_v3"}},
            "backbone.name",
            ["8x8", "data.image_size", "RuntimeError: Given input size"],
        ),
        (
            {"backbone": {"name": "vit_tiny_patch16_224", "kwargs": {"img_size": 32}}},
            "backbone.kwargs",
            ["8x8", "data.image_size", "32"],
        ),
    ],
)
def test_backbones_that_cannot_take_the_images(changes: dict[str, Any], key: str, words: list[str]) -> None:
    error = refused(**changes)
    assert error.key == key
    for word in words:
        assert word in str(error)


def test_features_of_the_wrong_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    class Map(nn.Module):
        num_features = 3

        def forward(self, x: Tensor) -> Tensor:
            return x

    check._check_backbone.cache_clear()
    monkeypatch.setattr(check, "build_backbone", lambda *_: Map())
    error = refused()
    assert error.key == "backbone.kwargs"
    assert "two images of 8x8 pixels give (2, 1, 8, 8), not (2, 3)" in str(error)


def test_large_backbones_are_checked_without_memory_and_once() -> None:
    check._check_backbone.cache_clear()
    changes: dict[str, Any] = {"backbone": {"name": "vit_large_patch16_224"}, "data__image_size": 224}
    before = torch.random.get_rng_state()
    check_experiment(tiny(**changes), file="x.yaml")
    check_experiment(tiny(**changes, seed=1), file="x.yaml")
    assert check._check_backbone.cache_info().hits == 1
    assert torch.equal(before, torch.random.get_rng_state())
