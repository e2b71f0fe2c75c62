"""The whole loop on two workers: what one process gives, and interrupted equals uninterrupted."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load

from simlap.record.journal import cell_storage, read_cell, read_result
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.train.checkpoint import CheckpointStore
from simlap.train.world import World
from tests.distributed.spawn import run_workers
from tests.tiny import tiny

pytestmark = pytest.mark.slow


def task(storage: Path) -> CellTask:
    # 127 rows of two workers: 64 and 63
    return CellTask("c", tiny(train__epochs=2, train__batch_size=127).model_dump(mode="json"), str(storage))


def load_in_order(rank: int, data: bytes) -> dict[str, torch.Tensor]:
    """As safetensors reads: in another order in every process, unless one was forked from the other."""
    return dict(sorted(load(data).items(), reverse=rank == 1))


def work(rank: int, world_size: int, directory: str) -> list[str]:
    world = World.current()
    *_, whole = run_cell(CellTask(**asdict(task(Path(directory, "whole")))), world)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return rank == 0 and asked > 5  # one worker is asked; all must stop at the same step

    *_, half = run_cell(task(Path(directory, "parts")), world, stop)
    assert half.stopped
    torch.distributed.barrier()
    with mock.patch("simlap.train.checkpoint.load_tensors", partial(load_in_order, rank)):
        *_, rest = run_cell(task(Path(directory, "parts")), world)
    *_, paused = run_cell(replace(task(Path(directory, "paused")), until=1), world)
    assert (paused.stopped, paused.epoch) == (True, 1)
    torch.distributed.barrier()
    *_, after = run_cell(task(Path(directory, "paused")), world)
    return ["finished" if progress.finished else "" for progress in (whole, rest, after)]


Numbers = tuple[list[dict[str, float]], dict[str, Any], dict[str, torch.Tensor]]


def numbers(storage: Path) -> Numbers:
    cell = cell_storage(Storage(storage), "c")
    newest = CheckpointStore(cell.child("checkpoints")).newest()
    result = read_result(cell)
    assert newest is not None
    assert result is not None
    rows = [
        {k: v for k, v in row.metrics.items() if not k.startswith("time/")}
        for row in read_cell(Storage(storage), "c").rows
    ]
    return rows, result["evaluations"], newest.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    ends = run_workers(work, 2, tmp_path_factory.mktemp("workers"), str(folder))
    assert ends == [["finished"] * 3] * 2
    return folder


@pytest.mark.parametrize("how", ["parts", "paused"])
def test_two_workers_resume_bit_for_bit(folder: Path, how: str) -> None:
    rows, result, model = numbers(folder / "whole")
    again_rows, again_result, again_model = numbers(folder / how)
    assert again_rows == rows
    assert again_result == result
    assert all(torch.equal(model[name], again_model[name]) for name in model)


def test_two_workers_train_as_one_process(folder: Path, tmp_path: Path) -> None:
    *_, last = run_cell(task(tmp_path), World())
    assert last.finished
    rows, _, model = numbers(folder / "whole")
    alone_rows, _, alone_model = numbers(tmp_path)
    for row, alone in zip(rows, alone_rows, strict=True):
        assert row.keys() == alone.keys()
        for name in ("train/loss", "train/nce", "train/probe_loss", "gate/mean", "gate/entropy"):
            assert row[name] == pytest.approx(alone[name], rel=2e-3), name
    # float32 sums in another order, followed for two epochs
    difference = sum(float((model[n].double() - alone_model[n].double()).square().sum()) for n in model)
    size = sum(float(alone_model[n].double().square().sum()) for n in model)
    assert difference <= 1e-4 * size
