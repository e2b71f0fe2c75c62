"""How busy the machine is, beside the numbers of a run."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from simlap.record.journal import read_cell
from simlap.run.system import SystemMeter
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.train.world import World
from tests.tiny import tiny

NAMES = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
}


def test_a_reading_is_cheap_and_plausible() -> None:
    meter = SystemMeter(torch.device("cpu"))
    took = []
    for _ in range(20):
        began = time.perf_counter()
        found = meter.read()
        took.append(time.perf_counter() - began)
    assert found.keys() == NAMES
    assert 0 <= found["system/system_memory_usage_percentage"] <= 100
    assert found["system/system_memory_usage_megabytes"] > 100
    assert sorted(took)[10] < 0.005


def test_every_epoch_of_a_run_has_it_beside_its_metrics(tmp_path: Path) -> None:
    experiment = tiny()
    for _ in run_cell(CellTask("c", experiment.model_dump(mode="json"), Storage(tmp_path).uri), World()):
        pass
    rows = read_cell(Storage(tmp_path), "c").rows
    assert len(rows) == experiment.train.epochs
    assert all(row.system.keys() == NAMES for row in rows)
    assert not any(name.startswith("system/") for row in rows for name in row.metrics)
