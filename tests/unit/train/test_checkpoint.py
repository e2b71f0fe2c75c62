"""A checkpoint without a valid manifest does not exist; the newest valid one is used, loudly if it is not the newest."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from simlap.storage import Storage
from simlap.train.checkpoint import Checkpoint, CheckpointStore, optimizer_state_dict, optimizer_tensors


def checkpoint(epoch: int, step: int = 0) -> Checkpoint:
    return Checkpoint(epoch, step, {"w": torch.full((3,), float(epoch))}, {"0.m": torch.ones(2)}, {"sums": []})


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(Storage(tmp_path), keep=2)


def test_round_trip(store: CheckpointStore) -> None:
    saved = store.save(checkpoint(3, 7))
    loaded = store.newest()
    assert loaded is not None
    assert (loaded.epoch, loaded.step, loaded.state, loaded.sha256, loaded.path) == (
        3,
        7,
        {"sums": []},
        saved.sha256,
        saved.path,
    )
    assert torch.equal(loaded.model["w"], torch.full((3,), 3.0))
    assert torch.equal(loaded.optimizer["0.m"], torch.ones(2))


def test_nothing_there(store: CheckpointStore) -> None:
    assert store.newest() is None


def test_keeps_the_newest(store: CheckpointStore) -> None:
    for epoch in range(1, 6):
        store.save(checkpoint(epoch))
    assert [store.load(name).epoch for name in store.names()] == [5, 4]


def test_unfinished_folders_do_not_count_towards_those_kept(store: CheckpointStore) -> None:
    store.save(checkpoint(1))
    store.storage.write("epoch-00009-step-0000000-attempt-0001/model.safetensors", b"half")
    store.save(checkpoint(2))
    assert [store.load(name).epoch for name in store.names()] == [2, 1]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "empty"])
def test_a_damaged_checkpoint_is_passed_over(
    store: CheckpointStore, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(checkpoint(1))
    path = store.storage.local_path(f"{store.save(checkpoint(2)).path}/{file}")
    assert path is not None
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"truncate": data[:middle], "flip": flipped, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        found = store.newest()
    assert found is not None
    assert found.epoch == 1
    assert "epoch-00002" in caplog.text


def test_damaged_ones_do_not_push_out_good_ones(store: CheckpointStore) -> None:
    for epoch in (9, 10):
        path = store.storage.local_path(f"{store.save(checkpoint(epoch)).path}/model.safetensors")
        assert path is not None
        path.write_bytes(b"damaged")
    assert store.newest() is None
    for epoch in (1, 2):
        store.save(checkpoint(epoch))
    assert [store.load(name).epoch for name in store.names()] == [2, 1]


def test_trouble_of_the_storage_is_not_taken_for_damage(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(checkpoint(1))

    def fail(path: str) -> bytes:
        raise PermissionError(path)

    monkeypatch.setattr(store.storage, "read", fail)
    with pytest.raises(PermissionError):
        store.newest()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_optimizer_state_survives(kind: type, store: CheckpointStore) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = kind(model.parameters())
    for _ in range(3):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    tensors, rest = optimizer_tensors(optimizer.state_dict())
    store.save(Checkpoint(1, 0, model.state_dict(), tensors, rest))
    loaded = store.newest()
    assert loaded is not None
    twin = nn.Linear(3, 2)
    twin.load_state_dict(loaded.model)
    other = kind(twin.parameters())
    other.load_state_dict(optimizer_state_dict(loaded.optimizer, loaded.state))
    images = torch.randn(4, 3)
    for m, o in ((model, optimizer), (twin, other)):
        o.zero_grad()
        m(images).square().sum().backward()
        o.step()
    assert torch.equal(model.weight, twin.weight)
