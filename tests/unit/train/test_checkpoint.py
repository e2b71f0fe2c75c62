"""A checkpoint without a valid manifest does not exist; the newest valid one is used, loudly if it is not the newest."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from simlap.storage import Storage
from simlap.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    find_checkpoint,
    optimizer_state_dict,
    optimizer_tensors,
    split_path,
)


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
    with pytest.raises(CheckpointError, match="no checkpoint is valid"):
        store.newest()
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


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 3).map(lambda n: torch.arange(float(n))),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text("abc$", min_size=1, max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


def equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    match a:
        case torch.Tensor():
            return torch.equal(a, b)
        case dict():
            return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        case list() | tuple():
            return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@given(entry=st.dictionaries(st.text("abc", min_size=1, max_size=3), trees, max_size=3), group=trees, extra=trees)
def test_whatever_an_optimiser_keeps_survives(entry: dict[str, Any], group: Any, extra: Any) -> None:
    """Tensors in lists (kron), in groups (lamb), dtypes (adafactor), generators (kron), counters (many)."""
    state = {"state": {0: entry, 3: {"step": 1}}, "param_groups": [{"params": [0, 3], "x": group}], "rng": extra}
    if not entry:
        del state["state"][0]
    tensors, rest = optimizer_tensors(state)
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    assert equal(optimizer_state_dict(tensors, json.loads(json.dumps(rest))), state)


def test_what_a_checkpoint_cannot_hold_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"\$state/0/odd of the optimiser is a set"):
        optimizer_tensors({"state": {0: {"odd": {1}}}, "param_groups": []})


def test_the_form_of_earlier_versions_is_readable() -> None:
    rest = {"optimizer_plain": {"0.step": 3}, "optimizer_groups": [{"lr": 0.1, "betas": [0.9, 0.99], "params": [0]}]}
    found = optimizer_state_dict({"0.exp_avg": torch.ones(2)}, rest)
    assert equal(found["state"], {0: {"exp_avg": torch.ones(2), "step": 3}})
    assert found["param_groups"] == rest["optimizer_groups"]


def test_names_of_places_do_not_collide() -> None:
    """A list's second tensor, and one whose own name says the same."""
    odd = {"Q": [torch.zeros(1), torch.ones(1)], "Q.1": torch.full((1,), 7.0), "Q/1": [torch.full((1,), 8.0)]}
    state = {"state": {0: odd, 1: {"Q/1": {"0": torch.ones(1)}, "Q": {"1/0": torch.zeros(1)}}}, "param_groups": []}
    tensors, rest = optimizer_tensors(state)
    assert equal(optimizer_state_dict(tensors, rest), state)


def test_the_checkpoint_of_a_path(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "run")
    runs = CheckpointStore(storage.child("checkpoints"))
    first, second = runs.save(checkpoint(1)), runs.save(checkpoint(2))
    run = str(tmp_path / "run")
    for path, epoch in ((run, 2), (f"{run}/checkpoints/{first.path}", 1), (f"{run}/checkpoints/{second.path}/", 2)):
        found = find_checkpoint(path)
        assert found is not None
        assert found.epoch == epoch
    storage.write_json("result.json", {"checkpoint": {"path": f"checkpoints/{first.path}"}})
    found = find_checkpoint(run)
    assert found is not None
    assert found.epoch == 1, "the result's, not the newest"
    assert find_checkpoint(str(tmp_path)) is None
    assert find_checkpoint(f"{run}/checkpoints/{first.path}/model.safetensors") is None
    assert find_checkpoint(str(tmp_path / "missing")) is None


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a", (".", "a")),
        ("/a", ("/", "a")),
        ("x/a/", ("x", "a")),
        ("s3://b/x/a?endpoint_override=http://h:1", ("s3://b/x?endpoint_override=http://h:1", "a")),
    ],
)
def test_folder_and_name(path: str, parts: tuple[str, str]) -> None:
    assert split_path(path) == parts
