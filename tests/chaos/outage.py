"""Processes that journal as workers do, while the tracking server that their study is shipped to is killed and comes back."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient

from simlap.record.journal import cell_storage, now_ms, read_rows
from simlap.record.ship import BackgroundShipper, ship_once
from simlap.record.tracking.cursor import study_cursor
from simlap.storage import Storage
from tests.integration.mlflow_studies import study, write_plan
from tests.integration.rows import journalled, shipped
from tests.integration.servers import Server, wait_until

WRITERS = 8
STUDY = "outage"


@dataclass
class Window:
    """A stretch of time in which the server was there, or was not."""

    up: bool
    begin_ms: int
    end_ms: int = 0
    epochs: int = 0
    writes_ms: list[float] = field(default_factory=list)
    """What publishing an epoch's row cost the writer."""

    @property
    def seconds(self) -> float:
        return (self.end_ms - self.begin_ms) / 1000

    @property
    def rate(self) -> float:
        """Epochs per second of all writers together."""
        return self.epochs / self.seconds


@dataclass
class Came:
    """What came of it."""

    windows: list[Window]
    rows: int
    """Numbers in the journals."""
    lost: int
    """Of these, not in MLflow."""
    doubled: int
    """In MLflow and not (or not so often) in the journals."""
    log: str
    """Of the shipping process."""
    catch_up_s: float
    """From the end of training until everything was there."""

    def rate(self, *, up: bool) -> float:
        chosen = [window for window in self.windows if window.up is up]
        return sum(window.epochs for window in chosen) / sum(window.seconds for window in chosen)

    @property
    def ratio(self) -> float:
        """Throughput without the server over that with it."""
        return self.rate(up=False) / self.rate(up=True)

    def write_ms(self, *, up: bool) -> tuple[float, float]:
        """Median and 99th percentile of what publishing an epoch cost."""
        values = sorted(value for window in self.windows if window.up is up for value in window.writes_ms)
        return statistics.median(values), values[int(0.99 * (len(values) - 1))]


def endure(folder: Path, server: Server, plan: list[float]) -> Came:
    """Let eight processes journal while the server is there, killed, there again...

    Args:
        folder: for the runs.
        server: that runs, on an empty store.
        plan: seconds of each stretch, in turn with the server and without. Its start, which takes a core of this machine for many
            seconds, belongs to none.
    """
    storage, view = Storage(folder / "runs"), study(name=STUDY, levels=("on", "off"), seeds=2, epochs=1)
    write_plan(storage, view)
    cells = [cell for arm in view.arms for cell in arm.cells]
    assert len(cells) == WRITERS
    stop = folder / "stop"
    writers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.writer", storage.uri, cell.cell_id, str(number), str(stop)]
        )
        for number, cell in enumerate(cells)
    ]
    shipper = BackgroundShipper(storage, STUDY, server.url)
    windows: list[Window] = []
    try:
        # all of it runs
        wait_until("the first rows", lambda: len(study_cursor(storage, STUDY, server.url).runs) >= WRITERS + 5)
        for number, seconds in enumerate(plan):
            up = number % 2 == 0
            if not up:
                server.kill()
            elif number:
                server.start()
            window = Window(up, now_ms())
            time.sleep(seconds)
            window.end_ms = now_ms()
            windows.append(window)
        if len(plan) % 2 == 0:
            server.start()
    finally:
        stop.touch()
        codes = [writer.wait(60) for writer in writers]
    assert codes == [0] * WRITERS
    ended = time.monotonic()
    shipper.finish()
    report = ship_once(storage, STUDY, server.url)
    assert report.errors == []
    caught_up = time.monotonic() - ended
    log = Path(report.log or shipper.log).read_text()
    return _judge(storage, server.url, windows, log, caught_up)


def _judge(storage: Storage, uri: str, windows: list[Window], log: str, catch_up_s: float) -> Came:
    written, held = journalled(storage, STUDY), shipped(MlflowClient(uri), STUDY)
    lost = sum(len(set(rows) - set(held.get(cell, ()))) for cell, rows in written.items())
    doubled = sum(len(rows) for rows in held.values()) - sum(
        len(set(rows) & set(held.get(cell, ()))) for cell, rows in written.items()
    )
    for cell in written:
        for row in read_rows(cell_storage(storage, cell)):
            if row["type"] != "metrics":
                continue
            for window in windows:
                if window.begin_ms <= row["t"] < window.end_ms:
                    window.epochs += 1
                    window.writes_ms.append(row["metrics"]["time/write_ms"])
    return Came(windows, sum(map(len, written.values())), lost, doubled, log, catch_up_s)
