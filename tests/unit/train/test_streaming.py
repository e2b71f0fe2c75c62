"""Training on images that are decoded along the way: exact, interrupted or not, and equal to training from memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simlap.config import Experiment, validate
from simlap.config.schema import DigitsData
from simlap.data import convert, load_splits
from simlap.errors import DataError
from simlap.storage import Storage
from simlap.train.checkpoint import Checkpoint, CheckpointStore
from simlap.train.loop import Progress, fit
from simlap.train.world import World
from tests.tiny import TREE

EVALUATE = [{"kind": "knn"}]
STREAMING: dict[str, Any] = {"workers": 2, "prefetch": 2, "block": 30, "window": 2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fifth of the digits, in row groups of 30."""
    path = tmp_path_factory.mktemp("digits") / "shards"
    convert(DigitsData(source="digits", fraction=0.2), str(path), rows_per_shard=30, shuffle=True)
    return path


def experiment(shards: Path, streaming: dict[str, Any] | None, **data: Any) -> Experiment:
    """5 steps an epoch."""
    section = {
        "source": "parquet",
        "train": str(shards / "train"),
        "test": str(shards / "test"),
        "image_size": 8,
        "augment": TREE["data"]["augment"],
        "streaming": streaming,
        **data,
    }
    return validate(
        Experiment, {**TREE, "data": section, "train": {"epochs": 2, "batch_size": 50}, "evaluate": EVALUATE}
    )


class Rows:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def start(self, epoch: int, step: int) -> None: ...

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.rows.append({name: value for name, value in metrics.items() if not name.startswith("time/")})

    def evaluated(self, evaluation_id: str, metrics: dict[str, float], artefact: dict[str, Any] | None = None) -> None:
        self.rows.append(dict(metrics))


def stop_at(step: int) -> Callable[[], bool]:
    steps = iter(range(step))
    return lambda: next(steps, None) is None


def run(experiment: Experiment, folder: Path, stops: tuple[int, ...] = ()) -> tuple[list[dict[str, float]], Checkpoint]:
    """Train to the end, asked to stop after so many steps each time."""
    store, rows, last = CheckpointStore(Storage(folder)), Rows(), None
    for stop in (*map(stop_at, stops), lambda: False):
        progress: Progress
        for progress in fit(
            experiment, load_splits(experiment.data), world=World(), store=store, reporter=rows, stop=stop
        ):
            last = progress
        assert not [thread.name for thread in threading.enumerate() if "simlap-decode" in thread.name]
    newest = store.newest()
    assert last is not None
    assert last.finished
    assert newest is not None
    return rows.rows, newest


def assert_equal(
    one: tuple[list[dict[str, float]], Checkpoint], other: tuple[list[dict[str, float]], Checkpoint]
) -> None:
    assert one[0] == other[0]
    for part in ("model", "optimizer"):
        mine, wanted = getattr(one[1], part), getattr(other[1], part)
        assert mine.keys() == wanted.keys()
        for key, value in wanted.items():
            assert torch.equal(mine[key], value), key


@pytest.mark.parametrize("repeats", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_interrupted_equals_uninterrupted(shards: Path, tmp_path: Path, repeats: int) -> None:
    made = experiment(shards, STREAMING, repeated_augmentation=repeats)
    whole = run(made, tmp_path / "whole")
    assert_equal(run(made, tmp_path / "parts", (2, 4)), whole)
    others = experiment(shards, {**STREAMING, "workers": 1, "prefetch": 7}, repeated_augmentation=repeats)
    assert_equal(run(others, tmp_path / "others"), whole)


def test_one_window_of_everything_equals_training_from_memory(shards: Path, tmp_path: Path) -> None:
    held = run(experiment(shards, None), tmp_path / "held")
    assert_equal(run(experiment(shards, {**STREAMING, "window": 100}), tmp_path / "streamed"), held)
    narrow = run(experiment(shards, STREAMING), tmp_path / "narrow")
    assert narrow[0] != held[0], "otherwise the order is another"


def test_shards_that_vanish_end_training_with_their_place(shards: Path, tmp_path: Path) -> None:
    made = experiment(shards, STREAMING)
    splits = load_splits(made.data)
    for path in (shards / "train").iterdir():
        path.rename(path.with_suffix(".gone"))
    try:
        with pytest.raises(DataError, match=r"data\.train: cannot read .*\.parquet"):
            list(fit(made, splits, world=World(), store=CheckpointStore(Storage(tmp_path)), reporter=Rows()))
    finally:
        for path in (shards / "train").iterdir():
            path.rename(path.with_suffix(".parquet"))
    assert not [thread.name for thread in threading.enumerate() if "simlap-decode" in thread.name]
