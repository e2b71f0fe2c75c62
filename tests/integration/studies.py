"""Studies small enough to run for real in a test, through the command line, in a process of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from simlap.config import yaml
from simlap.record.journal import cell_storage, read_rows, read_study
from simlap.record.view import CellView, StudyView
from simlap.storage import Storage
from tests.integration.blank import blank_store
from tests.tiny import TREE

STUDY = """
name: small
base: base.yaml
set: {train.epochs: 30}
factors: {filter: {path: method.gate.kind, levels: [gumbel, open]}}
baseline: {filter: gumbel}
seeds: 2
"""


class Lab:
    """A folder with a study file, runs and an MLflow store."""

    def __init__(self, folder: Path, study: str = STUDY, **base: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "base.yaml").write_text(yaml.dump({**TREE, **base}))
        if not (folder / "mlflow.db").exists():
            (folder / "mlflow.db").write_bytes(blank_store())
        self.write(study)

    def write(self, study: str) -> None:
        (self.folder / "study.yaml").write_text(study)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "simlap.cli", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"did not end: {out}\n{err}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def ablate(self) -> subprocess.CompletedProcess[str]:
        return self.run("ablate", "study.yaml")

    @property
    def storage(self) -> Storage:
        return Storage(self.folder / "runs")

    def view(self) -> StudyView:
        return read_study(self.storage, "small")

    def cells(self) -> dict[tuple[str, int], CellView]:
        return {(arm.name, cell.seed): cell for arm in self.view().arms for cell in arm.cells}

    def numbers(self) -> dict[tuple[str, int], list[tuple[int, dict[str, float]]]]:
        """Every cell's metrics at every epoch, without the time they took."""
        return {
            key: [(r.epoch, {k: v for k, v in r.metrics.items() if not k.startswith("time/")}) for r in cell.rows]
            for key, cell in self.cells().items()
        }

    def starts(self) -> dict[tuple[str, int], list[int]]:
        """From which epochs each cell was started."""
        return {
            key: [
                row["from_epoch"]
                for row in read_rows(cell_storage(self.storage, cell.cell_id))
                if row["type"] == "start"
            ]
            for key, cell in self.cells().items()
        }


def wait_for(condition: Any, seconds: float = 600) -> None:
    """Poll until true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it did not happen in time")
        time.sleep(0.05)  # what is looked at costs the launch under test its core


def mlflow_runs(lab: Lab) -> list[Any]:
    """All runs of the study's MLflow experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{lab.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))
