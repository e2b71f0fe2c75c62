"""A process that journals as a worker does: `python -m tests.chaos.writer STORAGE CELL NUMBER STOP_FILE`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from simlap.record.journal import Journal, cell_storage
from simlap.storage import Storage

EPOCH_S = 0.25
"""Of an epoch without its journal: waiting, as for a device, after a little work."""
METRICS = 20


def write(storage: Storage, cell_id: str, number: int, stop: Path) -> None:
    """One worker: epochs, journalled one by one, until the file is there."""
    cell = cell_storage(storage, cell_id)
    journal = Journal(cell, writer=f"w{number}", attempt=1)
    journal.start(0, 0, {})
    epoch, took = 0, 0.0
    while not stop.exists():
        began = time.perf_counter()
        for _ in range(20_000):
            pass
        time.sleep(max(0.0, EPOCH_S - (time.perf_counter() - began)))
        epoch += 1
        metrics = {f"train/m{i:02d}": (number + i) / epoch for i in range(METRICS)}
        began = time.perf_counter()
        journal.epoch(epoch, {**metrics, "time/write_ms": took})
        cell.write_json(f"checkpoints/epoch-{epoch:05d}-s/manifest.json", {})
        if epoch > 1:
            cell.delete(f"checkpoints/epoch-{epoch - 1:05d}-s")
        took = 1000 * (time.perf_counter() - began)
    journal.end("stopped", epoch, reason="the test is over")


if __name__ == "__main__":
    write(Storage(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
