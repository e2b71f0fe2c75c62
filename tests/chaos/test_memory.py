"""Out of memory on the host, for real: the process may take little beyond what it has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simlap.record.journal import read_cell
from simlap.run.task import CellTask
from simlap.storage import Storage
from simlap.train.check import check_experiment
from tests.tiny import tiny

LIMITED = """
import json, resource, sys
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.train.world import World

small, large = (CellTask(**json.loads(text)) for text in sys.argv[1:])
for _ in run_cell(small, World()):
    pass
(size,) = (int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + 100_000_000, -1))
for _ in run_cell(large, World()):
    pass
"""
"""What torch takes at first is its own affair: a small run comes before the limit."""


def task(folder: Path, **changes: object) -> CellTask:
    (stage,) = check_experiment(tiny(train__epochs=1, **changes), file="x")
    config = stage.experiment.model_dump(mode="json")
    return CellTask(stage.cell_id, config, str(folder), {"data_fingerprint": stage.info.fingerprint})


@pytest.mark.slow
def test_the_error_says_what_to_try(tmp_path: Path) -> None:
    # the activations of one layer: 1,260 x 2,048 x 64 pixels x 4 bytes
    small, large = task(tmp_path), task(tmp_path, train__batch_size=1260, backbone__kwargs={"widths": [2048, 8]})
    words = [json.dumps(vars(one)) for one in (small, large)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "HostMemoryError: the machine is out of memory: raise resources.cpus_per_worker (now 1)" in last
    assert "set a smaller train.micro_batch_size (now all 1260 rows of a worker at once)" in last
    storage = Storage(tmp_path)
    assert read_cell(storage, small.cell_id).state == "done"
    view = read_cell(storage, large.cell_id)
    assert view.state == "failed"
    assert (view.reason or "").startswith("HostMemoryError: the machine is out of memory")
