"""A study on a real Slurm of two nodes on this machine: its runs span both, a signal before the time limit makes it save, the job
is queued again and goes on, and the report is there. Needs root, and Debian's slurm-wlm and munge."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from simlap.config import yaml
from simlap.record.journal import read_study
from simlap.record.view import CellView
from simlap.storage import Storage
from tests.integration.studies import wait_for
from tests.tiny import TREE

ROOT = Path(__file__).resolve().parents[2]
MISSING = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
EPOCHS = 30
STUDY = f"""
name: small
base: base.yaml
set: {{train.epochs: {EPOCHS}}}
factors: {{filter: {{path: method.gate.kind, levels: [gumbel, open]}}}}
baseline: {{filter: gumbel}}
seeds: 1
resources: {{workers: 2, cpus_per_worker: 1, gpus_per_worker: 0}}
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.getuid() != 0, reason="needs root: slurmd starts processes for others"),
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is missing ({', '.join(MISSING)}): Debian's slurm-wlm and munge"),
]


class Slurm:
    """Two nodes of one CPU each on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = {
            **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
            "SLURM_CONF": str(folder / "here/slurm.conf"),
            "SIMLAP_BIN": str(Path(sys.executable).parent),
            "SIMLAP_STAGGER_S": "120",
            "PYTHONPATH": str(ROOT),
        }

    def call(self, *words: str) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def state(self, job: str) -> str:
        words = self.call("scontrol", "show", "job", "-o", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith("JobState="))


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="sls-", dir="/tmp"))  # munge's socket: a short path
    folder.chmod(0o711)
    script = str(ROOT / "cluster/slurm/one-machine.sh")
    made = Slurm(folder)
    (folder / "cluster").symlink_to(ROOT / "cluster")
    made.call(script, "up", str(folder / "here"))
    try:
        yield made
    finally:
        made.call(script, "down", str(folder / "here"))
        shutil.rmtree(folder, ignore_errors=True)


def cells(folder: Path) -> list[CellView]:
    if not (folder / "runs/studies/small/plan.json").exists():
        return []
    return [cell for arm in read_study(Storage(folder / "runs"), "small").arms for cell in arm.cells]


def test_a_study_is_stopped_queued_again_and_reported(slurm: Slurm) -> None:
    (slurm.folder / "base.yaml").write_text(yaml.dump(TREE))
    (slurm.folder / "study.yaml").write_text(STUDY)
    words = ("--parsable", "--nodes=2", "--time=30", "cluster/slurm/ablate.sbatch", "study.yaml", "--storage", "runs")
    job = slurm.call("sbatch", *words).strip()
    logs = slurm.folder / "slurm" / job

    def said() -> str:
        return "".join(path.read_text() for path in [*slurm.folder.glob("simlap-*.out"), *logs.glob("*/*.log")])

    def going() -> bool:
        assert slurm.state(job) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), said()
        return any(1 < cell.epoch < EPOCHS for cell in cells(slurm.folder))

    wait_for(going, 400)
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    wait_for(lambda: slurm.state(job) == "PENDING" or not slurm.call("squeue", "-h", "-j", job), 120)
    stopped = cells(slurm.folder)
    assert {cell.state for cell in stopped} != {"done"}, said()
    assert "interrupted; continue with" in said()
    assert not (logs / "SUCCEEDED").exists()
    assert not list(Path("/tmp").glob(f"sl-{job}"))

    wait_for(lambda: slurm.state(job) not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), 500)
    assert slurm.state(job) == "COMPLETED", said()
    assert (logs / "SUCCEEDED").exists()
    assert "stopped before the time limit; queued again" in said()
    assert sorted(path.name for path in logs.iterdir()) == ["0", "1", "SUCCEEDED"]
    ended = cells(slurm.folder)
    assert [cell.state for cell in ended] == ["done", "done"]
    assert all([row.epoch for row in cell.rows] == list(range(1, EPOCHS + 1)) for cell in ended), "nothing twice"
    assert (slurm.folder / "runs/studies/small/report/report.html").exists()
    assert "Answer" in (logs / "1/driver.log").read_text()
    for start in ("0", "1"):
        assert (logs / start / "up-1").exists(), "the second node was part of the cluster: a run needs both"
