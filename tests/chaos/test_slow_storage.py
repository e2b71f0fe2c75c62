"""A storage that is slow, refuses, or cuts its answers off: tried again, nothing lost or doubled."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from simlap.record.journal import cell_storage, read_cell, read_rows
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.train.world import World
from tests.chaos.test_checkpoints import outcome, run, task
from tests.integration.servers import FaultProxy, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server that speaks S3."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = int(probe.getsockname()[1])
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(free)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until("the server", lambda: socket.socket().connect_ex(("127.0.0.1", free)) == 0)
        yield free
    finally:
        server.terminate()
        server.wait(10)


def test_a_run_is_unaffected(port: int, tmp_path: Path) -> None:
    run(Storage(tmp_path))
    with FaultProxy(port, delay_s=0.1) as proxy:
        query = f"endpoint_override=127.0.0.1%3A{proxy.port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        pafs.FileSystem.from_uri(f"s3://bucket/?{query}")[0].create_dir("bucket")
        storage = Storage(f"s3://bucket/runs?{query}")
        made = task(storage)
        faults = iter(("errors", "cut", "delay"))
        for _ in run_cell(made, World()):
            proxy.fault = next(faults, "")
        proxy.fault = ""
        cell = cell_storage(storage, made.cell_id)
        assert outcome(storage) == outcome(Storage(tmp_path))
        view = read_cell(storage, made.cell_id)
        assert view.state == "done"
        here, there = (
            [row["type"] for row in read_rows(one)] for one in (cell, cell_storage(Storage(tmp_path), made.cell_id))
        )
        assert here == there, "nothing lost, nothing doubled"
        assert all(proxy.count[fault] for fault in ("errors", "cut", "delay")), proxy.count
