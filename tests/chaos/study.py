"""The study that is disturbed: cells of one worker that start from stages of two; and what its numbers must be."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from simlap.config import yaml
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.study.plan import make_plan
from simlap.study.planned import PlannedCell
from simlap.study.spec import load_study
from simlap.train.world import World
from tests.distributed.spawn import run_workers
from tests.tiny import TREE


@dataclass(frozen=True)
class Size:
    """Of the study."""

    arms: int
    seeds: int
    """As many stages of two workers."""
    stage_epochs: int
    epochs: int

    @property
    def cells(self) -> int:
        return self.arms * self.seeds

    @property
    def in_stages(self) -> int:
        """Epochs of all stages."""
        return self.seeds * self.stage_epochs

    @property
    def in_all(self) -> int:
        return self.in_stages + self.cells * self.epochs


def write_study(folder: Path, size: Size) -> Path:
    """Write the files of the study `kills` into a folder. Returns the study file."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = {"train": {"epochs": size.stage_epochs, "batch_size": 128}, "resources": {"workers": 2}}
    cell = {"train": {"epochs": size.epochs, "batch_size": 128}, "pretrain": "stage.yaml"}
    (folder / "stage.yaml").write_text(yaml.dump({**TREE, "name": "stage", **stage}))
    (folder / "base.yaml").write_text(yaml.dump({**TREE, **cell}))
    levels = [round(0.1 + 0.02 * number, 2) for number in range(size.arms)]
    study = {
        "name": "kills",
        "base": "base.yaml",
        "factors": {"temperature": {"path": "method.temperature", "levels": levels}},
        "baseline": {"temperature": levels[0]},
        "seeds": size.seeds,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.dump(study))
    return path


def planned(study: Path, runs: Path) -> list[PlannedCell]:
    """Everything that the study consists of, stages first."""
    plan = make_plan(load_study(study), Storage(runs))
    return [*plan.stages, *plan.cells]


def run_plainly(study: Path, runs: Path) -> None:
    """Run every stage and cell in order in this process (of two workers: in two), with neither Ray nor interruption."""
    for cell in planned(study, runs):
        task = CellTask(
            cell.cell_id,
            cell.experiment.model_dump(mode="json"),
            Storage(runs).uri,
            {"data_fingerprint": cell.fingerprint},
            cell.start,
        )
        workers = cell.experiment.resources.workers
        if workers == 1:
            for _ in run_cell(task, World()):
                pass
        else:
            with tempfile.TemporaryDirectory() as meeting:
                run_workers(_run_as_one_of, workers, Path(meeting), asdict(task))


def _run_as_one_of(rank: int, world_size: int, task: dict[str, Any]) -> None:
    for _ in run_cell(CellTask(**task), World.current(torch.device("cpu"))):
        pass
