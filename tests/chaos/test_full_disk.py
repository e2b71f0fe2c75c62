"""A storage without space: told clearly, what is there stays, and the same command goes on once there is room."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simlap.record.journal import cell_storage, read_cell, read_rows
from simlap.run.worker import run_cell
from simlap.storage import Storage, StorageFullError
from simlap.train import manifest
from simlap.train.checkpoint import CheckpointStore
from simlap.train.world import World
from tests.chaos.small_disk import BALLAST, fill, make_room, small_disk
from tests.chaos.test_checkpoints import outcome, run, task
from tests.integration.studies import Lab

STUDY = """
name: small
base: base.yaml
set: {train.epochs: 8}
factors: {filter: {path: method.gate.kind, levels: [gumbel, open]}}
baseline: {filter: gumbel}
seeds: 1
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as folder:
        yield folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    storage = Storage(tmp_path_factory.mktemp("undisturbed"))
    run(storage)
    return outcome(storage)


@pytest.mark.parametrize("leave", [0, 4096, 8192, 40_000], ids=lambda leave: f"{leave} bytes left")
def test_a_run_stops_and_goes_on(leave: int, disk: Path, undisturbed: dict[str, object]) -> None:
    """What the first write meets differs: the journal, the first or a later file of a checkpoint."""
    storage = Storage(disk)
    cell = cell_storage(storage, task(storage).cell_id)
    kept: list[list[dict[str, object]]] = []

    def until_full() -> None:
        for progress in run_cell(task(storage), World()):
            if progress.epoch == 1 and not kept:
                while not cell.exists(f"checkpoints/{manifest.SAVED}"):  # written while the next epoch trains
                    time.sleep(0.01)
                kept.append(read_rows(cell))
                fill(disk, leave=leave)

    with pytest.raises(StorageFullError) as caught:
        until_full()
    told = re.fullmatch(
        r"no space left: (\S+) needs ([\d,]+) bytes, ([\d,]+) are free; make room there and run the same command",
        str(caught.value),
    )
    assert told is not None, str(caught.value)
    assert told[1].startswith(str(disk))
    assert read_rows(cell)[: len(kept[0])] == kept[0], "the journal stays"
    assert not list(disk.rglob("*.tmp-*")), "nothing half-written is left"
    newest = CheckpointStore(cell.child("checkpoints")).newest()
    assert newest is not None
    assert read_cell(storage, task(storage).cell_id).state in ("running", "interrupted"), "not the run's fault"
    (disk / BALLAST).unlink()
    run(storage)
    assert outcome(storage) == undisturbed


@pytest.mark.slow
def test_a_study_stops_and_goes_on(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab", STUDY)
    with small_disk(lab.folder / "runs") as disk:
        fill(disk, leave=160_000)
        first = lab.run("ablate", "study.yaml")
        assert first.returncode == 1, first.stdout + first.stderr
        assert re.search(r"no space left: \S+/runs/\S+ needs [\d,]+ bytes, [\d,]+ are free", first.stderr), first.stderr
        assert "continue with: simlap ablate study.yaml" in first.stderr.replace("\n", " ")
        assert "Traceback" not in first.stderr
        began = {key: [row.metrics["train/loss"] for row in cell.rows] for key, cell in lab.cells().items()}
        make_room(disk, "8m")  # the report alone takes two
        second = lab.run("ablate", "study.yaml")
        assert second.returncode == 0, second.stdout + second.stderr
        cells = lab.cells()
        assert {cell.state for cell in cells.values()} == {"done"}
        for key, losses in began.items():
            durable = [row.metrics["train/loss"] for row in cells[key].rows][: len(losses)]
            assert durable == losses, "what was recorded came out again"
