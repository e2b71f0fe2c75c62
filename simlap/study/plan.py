"""Reconcile a study file with what is there: which cells are new, done, to be resumed, failed or removed."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import Any, Literal

from simlap.config import Experiment, cell_id, evaluation_id
from simlap.data.splits import DataInfo
from simlap.errors import ConfigError
from simlap.record.journal import cell_storage, now_ms, read_cell, read_result
from simlap.record.provenance import collect
from simlap.record.view import CellView
from simlap.storage import Storage
from simlap.study.events import read_events, stopped_cells
from simlap.study.spec import Arm, Asha, Study
from simlap.train.check import check_experiment

SCHEMA_VERSION = 1
Action = Literal["new", "done", "resume", "evaluate", "stopped", "failed"]
SYMBOLS: dict[Action, str] = {
    "new": "+", "done": "=", "resume": ">", "evaluate": ">", "stopped": "=", "failed": "!",
}  # fmt: skip
"""As `simlap plan` shows them; a stopped cell is done for this study."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell and what this study has to do with it."""

    cell_id: str
    seed: int
    arm: Arm
    experiment: Experiment
    action: Action
    view: CellView
    fingerprint: str
    """Of its dataset."""

    @property
    def pending(self) -> bool:
        return self.action not in ("done", "stopped")

    @property
    def epochs_left(self) -> int:
        return self.experiment.train.epochs - self.view.epoch if self.pending else 0


@dataclass(frozen=True)
class Plan:
    """All cells of a study, seed by seed, so that every arm has a result early."""

    study: Study
    storage: Storage
    cells: list[PlannedCell]
    removed: list[str]
    """Arms that an earlier version of the file had."""

    @property
    def pending(self) -> list[PlannedCell]:
        return [cell for cell in self.cells if cell.pending]

    def of_arm(self, arm: Arm) -> list[PlannedCell]:
        return [cell for cell in self.cells if cell.arm is arm]

    def device_hours(self) -> float | None:
        """Estimate for the pending cells from the epochs run so far; None where nothing has run yet."""
        timed = [row.metrics["time/epoch_s"] for cell in self.cells for row in cell.view.rows]
        if not timed:
            return None
        left = sum(cell.epochs_left * cell.experiment.resources.workers for cell in self.pending)
        return left * (sum(timed) / len(timed)) / 3600

    def save(self) -> None:
        """Write `plan.json`, from which views of the study are read."""
        self.storage.child("studies", self.study.name).write_json("plan.json", self._json())

    def _json(self) -> dict[str, Any]:
        spec = self.study.spec
        return {
            "schema_version": SCHEMA_VERSION,
            "t": now_ms(),
            "metric": spec.metric.name,
            "mode": spec.metric.mode,
            "report_metric": spec.metric.report,
            "epochs": max(arm.experiment.train.epochs for arm in self.study.arms),
            "seeds": spec.seed_list(),
            "factors": {name: list(factor.named()) for name, factor in spec.factors.items()},
            "scheduler": spec.scheduler.kind,
            "claims": [],
            "validation": self.study.base.data.validation != "none",
            "command": shlex.join(["simlap", *sys.argv[1:]]),
            "provenance": {**collect(), "data_fingerprint": self.cells[0].fingerprint},
            "text": self.study.text,
            "arms": [
                {
                    "name": arm.name,
                    "levels": arm.levels,
                    "protected": arm.protected,
                    "baseline": arm.baseline,
                    "evaluate": [evaluation.model_dump(mode="json") for evaluation in arm.experiment.evaluate],
                    "cells": [{"cell_id": cell.cell_id, "seed": cell.seed} for cell in self.of_arm(arm)],
                }
                for arm in self.study.arms
            ],
        }


def make_plan(study: Study, storage: Storage) -> Plan:
    """Check the data of every arm, name every cell, and look at what is there. Raises UserError; starts nothing."""
    folder = storage.child("studies", study.name)
    inspected: dict[str, DataInfo] = {}
    scheduler = study.spec.scheduler
    stopped = stopped_cells(read_events(folder), scheduler.model_dump()) if isinstance(scheduler, Asha) else {}
    seen: dict[str, str] = {}
    cells = []
    for seed in study.spec.seed_list():
        for arm in study.arms:
            info = check_experiment(arm.experiment, file=f"{study.path}: arm {arm.name}", inspected=inspected)
            experiment = arm.experiment.model_copy(update={"seed": seed, "name": f"{study.name}/{arm.name}"})
            identity = cell_id(experiment, info.fingerprint)
            if identity in seen:
                raise ConfigError(
                    f"is the same experiment as arm {seen[identity]!r}: its factors change nothing that training depends on",
                    file=str(study.path),
                    key=f"arm {arm.name}",
                )
            seen[identity] = arm.name
            evaluate = [evaluation.model_dump(mode="json") for evaluation in experiment.evaluate]
            view = read_cell(storage, identity, seed=seed, evaluate=evaluate)
            action = _action(storage, experiment, view, stopped, protected=arm.protected)
            cells.append(PlannedCell(identity, seed, arm, experiment, action, view, info.fingerprint))
    return Plan(study, storage, cells, _removed(study, folder))


def _action(
    storage: Storage, experiment: Experiment, view: CellView, stopped: dict[str, str], *, protected: bool
) -> Action:
    match view.state:
        case "new":
            return "new"
        case "done":
            result = read_result(cell_storage(storage, view.cell_id)) or {}
            wanted = {evaluation_id(e, result["checkpoint"]["sha256"]) for e in experiment.evaluate}
            return "done" if wanted <= set(result["evaluations"]) else "evaluate"
        case "failed":
            return "failed"
        case _:
            return "stopped" if view.cell_id in stopped and not protected else "resume"


def _removed(study: Study, folder: Storage) -> list[str]:
    try:
        earlier = folder.read_json("plan.json")["arms"]
    except FileNotFoundError:
        return []
    return [arm["name"] for arm in earlier if arm["name"] not in {arm.name for arm in study.arms}]
