"""What is exported, timm alone loads, with equal features."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.testing import assert_close

from simlap.config import Experiment
from simlap.data.splits import Splits, load_splits
from simlap.errors import ConfigError, UserError
from simlap.storage import Storage
from simlap.train.checkpoint import CheckpointStore
from simlap.train.export import export_backbone
from simlap.train.step import TrainState, build, train_epoch
from simlap.train.weights import fingerprint, read_backbone
from simlap.train.world import World
from tests.tiny import tiny

BACKBONES: dict[str, dict[str, Any]] = {
    "resnet18": {
        "name": "resnet18",
        "kwargs": {
            "stem_type": "deep",
            "output_stride": 8,
            "block_args": {"attn_layer": "se"},
            "layers": [1, 1, 1, 1],
            "channels": [8, 8, 16, 16],
        },
    },
    "vit": {"name": "vit_tiny_patch16_224", "kwargs": {"patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2}},
    "mobilenet": {"name": "mobilenetv3_small_050"},
}


def experiment(backbone: dict[str, Any], **changes: Any) -> Experiment:
    settings = {"data__fraction": 0.05, "train__batch_size": 16, "train__epochs": 1, "optim__lr": 1e-3, **changes}
    return tiny(backbone=backbone, **settings)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(experiment({"name": "conv3"}).data)


@pytest.mark.parametrize("place", ["proc", "file"])
def test_a_place_that_cannot_be_written(tmp_path: Path, splits: Splits, place: str) -> None:
    trained(tmp_path / "run", splits, BACKBONES["resnet18"])
    (tmp_path / "file").write_bytes(b"")
    out = "/proc/simlap" if place == "proc" else str(tmp_path / "file" / "in it")
    with pytest.raises(UserError, match="cannot be written") as raised:
        export_backbone(str(tmp_path / "run"), out)
    assert str(raised.value).startswith(f"{out}: OUT: ")


def trained(folder: Path, splits: Splits, backbone: dict[str, Any], **changes: Any) -> TrainState:
    """A run directory with one checkpoint."""
    state = build(experiment(backbone, **changes), splits, World())
    train_epoch(state)
    storage = Storage(folder)
    saved = CheckpointStore(storage.child("checkpoints")).save(state.snapshot())
    storage.write_json("result.json", {"checkpoint": {"path": f"checkpoints/{saved.path}", "sha256": saved.sha256}})
    return state


def features(model: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        h: Tensor = model.eval()(images)
    return h


@pytest.mark.parametrize(("name", "ema"), [("resnet18", None), ("vit", 0.5), ("mobilenet", None)])
def test_timm_gives_the_same_features(tmp_path: Path, splits: Splits, name: str, ema: float | None) -> None:
    state = trained(tmp_path / "run", splits, BACKBONES[name], train__ema_decay=ema)
    call = export_backbone(str(tmp_path / "run"), tmp_path / "out")
    images = torch.randn(4, 1, 8, 8)
    expected = features(state.evaluated.backbone, images)
    if ema:
        assert not torch.equal(expected, features(state.model.backbone, images))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    model = timm.create_model(
        config["architecture"],
        checkpoint_path=str(tmp_path / "out" / "model.safetensors"),
        num_classes=0,
        **config["model_args"],
    )
    assert_close(features(model, images), expected)  # convolutions of ours skip padding, so up to rounding
    assert_close(features(eval(call, {"timm": timm}), images), expected)
    assert call in (tmp_path / "out" / "README.md").read_text()
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert_close(features(again, images), expected)
    assert again.pretrained_cfg["mean"] == pytest.approx(splits.mean)
    assert tuple(again.pretrained_cfg["input_size"]) == (1, 8, 8)
    assert fingerprint(read_backbone(str(tmp_path / "out"))) == fingerprint(read_backbone(str(tmp_path / "run")))


def test_a_checkpoint_of_a_run(tmp_path: Path, splits: Splits) -> None:
    trained(tmp_path / "run", splits, BACKBONES["vit"])
    (name,) = CheckpointStore(Storage(tmp_path / "run" / "checkpoints")).names()
    export_backbone(str(tmp_path / "run" / "checkpoints" / name), tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.slow
def test_without_simlap(tmp_path: Path, splits: Splits) -> None:
    state = trained(tmp_path / "run", splits, BACKBONES["vit"])
    call = export_backbone(str(tmp_path / "run"), tmp_path / "out")
    code = f"import timm, torch\nprint({call}.eval()(torch.ones(1, 1, 8, 8)).sum().item())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert float(out) == pytest.approx(float(features(state.model.backbone, torch.ones(1, 1, 8, 8)).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("backbone", "key", "value"),
    [
        ({"name": "conv3", "kwargs": {"widths": [4]}}, "backbone.name", "conv3"),
        (
            {"name": "resnet18", "stem": "small", "kwargs": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}},
            "backbone.stem",
            "small",
        ),
    ],
)
def test_what_timm_cannot_build(tmp_path: Path, splits: Splits, backbone: dict[str, Any], key: str, value: str) -> None:
    trained(tmp_path / "run", splits, backbone)
    with pytest.raises(ConfigError, match="read_backbone") as raised:
        export_backbone(str(tmp_path / "run"), tmp_path / "out")
    assert (raised.value.key, raised.value.value, raised.value.file) == (key, value, str(tmp_path / "run"))
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        export_backbone(str(tmp_path), tmp_path / "out")
    with pytest.raises(UserError, match="is no run directory and no checkpoint"):
        export_backbone(str(tmp_path), tmp_path / "new")
    with pytest.raises(UserError, match="is no run directory and no checkpoint"):
        export_backbone(str(tmp_path / "missing"), tmp_path / "new")
