"""Checkpoints written beside the training: what was asked for is what is on the disk, one at a time, and no error is lost."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from simlap.storage import Storage
from simlap.train.checkpoint import Checkpoint, CheckpointStore
from simlap.train.saving import Saver


def checkpoint(epoch: int, value: torch.Tensor) -> Checkpoint:
    return Checkpoint(epoch, 0, {"w": value}, {"0.m": value}, {"sums": []})


class _Held(CheckpointStore):
    """Writes only when it is let."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Storage(folder))
        self.let, self.writing = threading.Event(), 0

    def save(self, checkpoint: Checkpoint) -> Checkpoint:
        self.writing += 1
        assert self.let.wait(10)
        saved = super().save(checkpoint)
        self.writing -= 1
        assert self.writing == 0
        return saved


class _Full(CheckpointStore):
    def save(self, checkpoint: Checkpoint) -> Checkpoint:
        raise OSError(28, "No space left on device")


def test_it_saves_the_state_of_the_moment(tmp_path: Path) -> None:
    store = _Held(tmp_path)
    saver, value = Saver(store), torch.zeros(3, 2).T
    saver.save(checkpoint(1, value))
    value += 1  # the next step
    assert saver.newest() is None, "nothing is durable yet"
    store.let.set()
    durable = saver.wait()
    assert durable is not None
    assert saver.newest() is durable
    loaded = store.newest()
    assert loaded is not None
    assert (loaded.epoch, loaded.path, loaded.sha256) == (1, durable.path, durable.sha256)
    assert torch.equal(loaded.model["w"], torch.zeros(2, 3))
    assert torch.equal(loaded.optimizer["0.m"], torch.zeros(2, 3))
    saver.close()


def test_one_after_another(tmp_path: Path) -> None:
    store = _Held(tmp_path)
    store.let.set()
    saver = Saver(store)
    for epoch in range(1, 5):
        saver.save(checkpoint(epoch, torch.tensor(float(epoch))))
    saver.close()
    assert [store.load(name).epoch for name in store.names()] == [4, 3]


@pytest.mark.parametrize("method", ["save", "newest", "wait", "close"])
def test_errors_are_raised_by_the_next_call(tmp_path: Path, method: str) -> None:
    saver = Saver(_Full(Storage(tmp_path)))
    saver.save(checkpoint(1, torch.zeros(1)))
    assert saver._under_way is not None
    saver._under_way.exception()  # it has happened
    with pytest.raises(OSError, match="No space left"):
        saver.save(checkpoint(2, torch.zeros(1))) if method == "save" else getattr(saver, method)()


def test_what_is_there_before(tmp_path: Path) -> None:
    before = checkpoint(1, torch.zeros(1))
    saver = Saver(CheckpointStore(Storage(tmp_path)), before)
    assert saver.newest() is before
    assert saver.wait() is before
    saver.close()


def test_workers_that_do_not_write(tmp_path: Path) -> None:
    saver = Saver(None)
    saver.save(checkpoint(2, torch.zeros(1)))
    assert saver.wait() is not None
    saver.close()
