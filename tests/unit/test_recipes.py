"""Every shipped experiment and study is loaded, checked, built and stepped once, on a few made-up images."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from simlap.config import Experiment, load_experiment, override
from simlap.data import load_splits
from simlap.study.arms import Arm
from simlap.study.spec import load_study
from simlap.train.check import check_experiment
from simlap.train.step import build, train_epoch
from simlap.train.weights import backbone_of
from simlap.train.world import World

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
STUDIES = sorted((ROOT / "ablations").glob("*.yaml"))
CLASSES, EACH = 10, 6


@dataclass(frozen=True)
class Places:
    """Made-up images in every layout that the recipes read."""

    parquet: Path
    folder: Path
    idx: Path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for part, idx in (("train", "train"), ("test", "t10k")):
        labels = np.arange(CLASSES * EACH) % CLASSES
        pixels = noise.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        encoded = [{"bytes": png(image), "path": None} for image in pixels]
        pq.write_table(pa.table({"image": encoded, "label": labels}), root / f"{part}.parquet")
        for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            file = root / part / f"class{label}" / f"{row}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(image))
        grey = pixels[:, :28, :28, 0]
        write_idx(root / "idx" / f"{idx}-images-idx3-ubyte.gz", grey)
        write_idx(root / "idx" / f"{idx}-labels-idx1-ubyte.gz", labels.astype(np.uint8))
    return Places(root, root, root / "idx")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def shrunk(experiment: Experiment, places: Places) -> Experiment:
    """The same experiment on the made-up images, with a batch of a few."""
    changes: list[tuple[str, Any]] = []
    for i, stage in enumerate(reversed(experiment.stages)):
        place = "pretrain." * i
        match stage.data.source:
            case "parquet":
                paths = {part: str(places.parquet / f"{part}.parquet") for part in ("train", "test")}
            case "folder":
                paths = {part: str(places.folder / part) for part in ("train", "test")}
            case "fashion_mnist":
                paths = {"root": str(places.idx)}
            case _:
                paths = {}
        changes += [(f"{place}data.{key}", path) for key, path in paths.items()]
        changes += [(f"{place}data.fraction", 1.0), (f"{place}train.batch_size", 6)]
        changes += [(f"{place}resources.{key}", 1) for key in ("workers", "cpus_per_worker")]
        if stage.data.validation != "none":
            changes.append((f"{place}data.validation", {"fraction": 0.2}))
    return override(experiment, changes)


def assert_it_steps(experiment: Experiment, places: Places, file: str) -> None:
    """A step of every stage, each from where the one before it ended."""
    experiment = shrunk(experiment, places)
    assert len(check_experiment(experiment, file=file)) == len(experiment.stages)
    start: dict[str, Tensor] | None = None
    for stage in experiment.stages:
        state = build(stage, load_splits(stage.data), World(), start)
        before = [parameter.detach().clone() for parameter in state.model.parameters()]
        train_epoch(state, stop=lambda state=state: state.step == 1)  # type: ignore[misc]
        assert state.step == 1
        assert all(torch.isfinite(value).all() for value in state.sums.values())
        changed = [not torch.equal(old, new) for old, new in zip(before, state.model.parameters(), strict=True)]
        assert any(changed), "the step changed nothing"
        start = backbone_of(state.model.state_dict())


def around_the_baseline(file: Path) -> Iterator[Arm]:
    """The arms in which each level appears, with as little else changed as the study allows."""
    arms = load_study(file).arms
    baseline = next(arm for arm in arms if arm.baseline)

    def distance(arm: Arm) -> int:
        return sum(arm.levels[name] != level for name, level in baseline.levels.items())

    seen: set[tuple[str, str]] = set()
    for arm in sorted(arms, key=distance):
        if new := set(arm.levels.items()) - seen:
            seen |= new
            yield arm


@pytest.mark.slow
@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_experiment(file: Path, places: Places) -> None:
    assert_it_steps(load_experiment(file), places, str(file))


@pytest.mark.slow
@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_study(file: Path, places: Places) -> None:
    arms = list(around_the_baseline(file))
    assert len(arms) >= 2
    for arm in arms:
        assert_it_steps(arm.experiment, places, f"{file}: {arm.name}")
