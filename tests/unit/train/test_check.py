"""What is wrong with an experiment is said before it starts, with the file and the key."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simlap.data.splits import DataInfo
from simlap.errors import ConfigError, DataError, UserError
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
    info = check_experiment(tiny(), file="x.yaml", inspected=inspected)
    assert (info.channels, info.num_classes) == (1, 10)
    assert check_experiment(tiny(seed=1), file="x.yaml", inspected=inspected) is info
    assert list(inspected.values()) == [info]


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
    changes: dict[str, Any] = {"backbone": {"name": "vit_giant_patch14_224"}, "data__image_size": 224}
    started = time.perf_counter()
    check_experiment(tiny(**changes), file="x.yaml")
    first = time.perf_counter() - started
    before = torch.random.get_rng_state()
    started = time.perf_counter()
    check_experiment(tiny(**changes, seed=1), file="x.yaml")
    assert time.perf_counter() - started < first / 2
    assert check._check_backbone.cache_info().hits == 1
    assert torch.equal(before, torch.random.get_rng_state())
