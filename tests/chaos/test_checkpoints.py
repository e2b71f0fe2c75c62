"""Checkpoints that are cut off, flipped, half-written or gone: noticed, always; never begun anew without a word."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from simlap.record.journal import cell_storage, read_cell, read_rows
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.train import manifest
from simlap.train.check import check_experiment
from simlap.train.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from simlap.train.world import World
from tests.tiny import tiny

OFFSETS = 200
FILES = [*sorted(manifest.FILES), "manifest.json"]
Damage = Callable[[bytes, random.Random], bytes]


def cut(data: bytes, rng: random.Random) -> bytes:
    """Cut off anywhere, at the first byte as well as before the last."""
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def half(data: bytes, rng: random.Random) -> bytes:
    """The right length, and nothing from some place on: what a file system may leave after a power failure."""
    place = rng.randrange(len(data))
    return data[:place] + bytes(len(data) - place)


def replace(data: bytes, rng: random.Random) -> bytes:
    """Some other byte."""
    place = rng.randrange(len(data))
    return data[:place] + bytes([(data[place] + rng.randrange(1, 256)) % 256]) + data[place + 1 :]


DAMAGES: list[Damage] = [cut, flip, half, replace]


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    made = CheckpointStore(Storage(tmp_path))
    for epoch in (1, 2):
        tensors = {"w": torch.full((3, 5), float(epoch)), "b": torch.arange(3)}
        state = {"epoch": epoch, "sums": [0.25], "name": "é"}
        made.save(Checkpoint(epoch, 0, tensors, {"0.m": torch.ones(2)}, {"sums": state["sums"]}))
    return made


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_is_noticed(file: str, damage: Damage, store: CheckpointStore) -> None:
    logging.getLogger("simlap.checkpoint").setLevel(logging.ERROR)
    newest = store.names()[0]
    path = store.storage.local_path(f"{newest}/{file}")
    assert path is not None
    whole, rng = path.read_bytes(), random.Random(f"{file} {damage.__name__}")
    done = 0
    try:
        while done < OFFSETS:
            damaged = damage(whole, rng)
            if damaged == whole:  # the tail was zeros already
                continue
            done += 1
            path.write_bytes(damaged)
            fresh = CheckpointStore(store.storage)
            found = fresh.newest()
            assert found is not None
            assert found.epoch == 1, f"{file} as {damaged!r}"
            assert list(fresh.damaged) == [newest]
    finally:
        logging.getLogger("simlap.checkpoint").setLevel(logging.NOTSET)
    path.write_bytes(whole)
    assert CheckpointStore(store.storage).load(newest).epoch == 2


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_noticed(file: str, store: CheckpointStore, caplog: pytest.LogCaptureFixture) -> None:
    store.storage.delete(f"{store.names()[0]}/{file}")
    found = store.newest()
    assert found is not None
    assert found.epoch == 1
    assert "epoch-00002" in caplog.text
    assert "missing" in caplog.text


def test_a_copy_under_another_name_is_noticed(store: CheckpointStore, tmp_path: Path) -> None:
    """Older weights that claim to be newer would lose epochs without a word."""
    newest, before = store.names()
    shutil.copytree(tmp_path / before, tmp_path / "epoch-00007-step-0000000-attempt-0001")
    found = store.newest()
    assert found is not None
    assert found.path == newest


@pytest.mark.parametrize("what", ["damaged", "without manifests", "gone"])
def test_without_a_valid_one_it_refuses(what: str, store: CheckpointStore) -> None:
    for name in store.names():
        if what == "damaged":
            store.storage.write(f"{name}/model.safetensors", b"")
        else:
            store.storage.delete(f"{name}/manifest.json" if what == "without manifests" else name)
    with pytest.raises(CheckpointError, match=r"no checkpoint is valid .* delete the run directory"):
        CheckpointStore(store.storage).newest()


def test_what_was_never_complete_is_no_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A kill while the first one is written: the run begins anew, and says that something was there."""
    store = CheckpointStore(Storage(tmp_path))
    store.storage.write("epoch-00001-step-0000000-attempt-0001/model.safetensors", b"half")
    assert store.newest() is None
    assert "never completed" in caplog.text


def test_manifests_of_before_are_read(store: CheckpointStore) -> None:
    newest = store.names()[0]
    sums = store.storage.read_json(f"{newest}/manifest.json")["sha256"]
    store.storage.write_json(f"{newest}/manifest.json", {"schema_version": 1, "sha256": sums})
    assert CheckpointStore(store.storage).load(newest).epoch == 2


# --- the way that a run takes


def task(storage: Storage, until: int | None = None) -> CellTask:
    (stage,) = check_experiment(tiny(checkpoint__keep=2), file="x")
    config = stage.experiment.model_dump(mode="json")
    return CellTask(stage.cell_id, config, storage.uri, {"data_fingerprint": stage.info.fingerprint}, until=until)


def run(storage: Storage, until: int | None = None) -> None:
    for _ in run_cell(task(storage, until), World()):
        pass


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after two of its three epochs."""
    folder = tmp_path_factory.mktemp("paused")
    run(Storage(folder), until=2)
    return folder


@pytest.fixture(scope="module")
def undisturbed(paused: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("undisturbed") / "runs"
    shutil.copytree(paused, folder)
    run(Storage(folder))
    return outcome(Storage(folder))


def outcome(storage: Storage) -> dict[str, object]:
    """What came out, to the last digit."""
    cell_id = task(storage).cell_id
    result = cell_storage(storage, cell_id).read_json("result.json")
    view = read_cell(storage, cell_id)
    rows = [{k: v for k, v in row.metrics.items() if not k.startswith("time/")} for row in view.rows]
    return {"weights": result["checkpoint"]["sha256"], "results": result["evaluations"], "rows": rows}


@pytest.mark.parametrize(
    ("file", "damage"), [("model.safetensors", flip), ("state.json", cut), ("manifest.json", half)]
)
def test_a_run_goes_on_from_the_one_before(
    file: str, damage: Damage, paused: Path, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    shutil.copytree(paused, tmp_path / "runs")
    storage = Storage(tmp_path / "runs")
    cell = cell_storage(storage, task(storage).cell_id)
    newest = manifest.names(cell.child("checkpoints"))[0]
    place = f"checkpoints/{newest}/{file}"
    cell.write(place, damage(cell.read(place), random.Random(1)))
    run(storage)
    assert outcome(storage) == undisturbed
    start = [row for row in read_rows(cell) if row["type"] == "start"][-1]
    assert (start["from_epoch"], start["from_step"]) == (1, 0)
    (told,) = read_cell(storage, task(storage).cell_id).warnings
    assert newest in told
    assert "went on from 1 epochs" in told


@pytest.mark.parametrize("what", ["damaged", "gone"])
def test_a_run_without_a_valid_one_refuses(what: str, paused: Path, tmp_path: Path) -> None:
    shutil.copytree(paused, tmp_path / "runs")
    storage = Storage(tmp_path / "runs")
    cell = cell_storage(storage, task(storage).cell_id)
    if what == "damaged":
        for name in manifest.names(cell.child("checkpoints")):
            cell.write(f"checkpoints/{name}/optimizer.safetensors", b"")
    else:
        run(storage, until=2)  # from a checkpoint, which the journal then knows
        cell.delete("checkpoints")
    before = read_cell(storage, task(storage).cell_id).rows
    with pytest.raises(CheckpointError, match="no checkpoint is valid"):
        run(storage)
    view = read_cell(storage, task(storage).cell_id)
    assert view.state == "failed"
    assert (view.reason or "").startswith("CheckpointError: ")
    assert view.rows == before, "what is recorded stays"
