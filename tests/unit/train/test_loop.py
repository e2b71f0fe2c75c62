"""Checkpoints beside the training: rows before what covers them, durable when the run is left, errors loud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simlap.data.splits import Splits, load_splits
from simlap.storage import Storage
from simlap.train.checkpoint import Checkpoint, CheckpointStore
from simlap.train.loop import Progress, fit
from simlap.train.world import World
from tests.tiny import tiny

EXPERIMENT = tiny(data__fraction=0.5, evaluate=[{"kind": "probe"}])


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(EXPERIMENT.data)


class Recorder:
    """What was reported and what was saved, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def start(self, epoch: int, step: int) -> None: ...

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.events.append(("row", epoch))

    def evaluated(self, evaluation_id: str, metrics: dict[str, float], artefact: dict[str, Any] | None = None) -> None:
        self.events.append(("evaluated", 0))


def started(splits: Splits, store: CheckpointStore, recorder: Recorder) -> Any:
    return fit(EXPERIMENT, splits, world=World(), store=store, reporter=recorder)


def test_rows_come_before_the_checkpoint_that_covers_them(splits: Splits, tmp_path: Path) -> None:
    recorder = Recorder()

    class Store(CheckpointStore):
        def save(self, checkpoint: Checkpoint) -> Checkpoint:
            saved = super().save(checkpoint)
            recorder.events.append(("saved", checkpoint.epoch))
            return saved

    *_, last = started(splits, Store(Storage(tmp_path)), recorder)
    assert isinstance(last, Progress)
    for epoch in (1, 2, 3):
        assert recorder.events.index(("row", epoch)) < recorder.events.index(("saved", epoch))
    assert recorder.events[-2:] == [("saved", 3), ("evaluated", 0)], "what is evaluated is what is durable"
    assert last.finished
    assert last.checkpoint is not None
    newest = CheckpointStore(Storage(tmp_path)).newest()
    assert newest is not None
    assert (last.checkpoint.epoch, last.checkpoint.sha256) == (3, newest.sha256)


def test_a_run_that_is_left_has_its_checkpoint(splits: Splits, tmp_path: Path) -> None:
    store = CheckpointStore(Storage(tmp_path))
    run = started(splits, store, Recorder())
    assert next(run).epoch == 1
    run.close()
    newest = store.newest()
    assert newest is not None
    assert newest.epoch == 1


@pytest.mark.parametrize("left", [False, True])
def test_a_full_disk_is_said(splits: Splits, tmp_path: Path, left: bool) -> None:
    class Store(CheckpointStore):
        def save(self, checkpoint: Checkpoint) -> Checkpoint:
            raise OSError(28, "No space left on device")

    recorder = Recorder()
    run = started(splits, Store(Storage(tmp_path)), recorder)

    def leave() -> None:
        next(run)  # may have heard of it already
        run.close()

    with pytest.raises(OSError, match="No space left"):
        leave() if left else list(run)
    assert recorder.events.count(("row", 1)) == 1
    assert ("row", 3) not in recorder.events, "the next epoch says so"
