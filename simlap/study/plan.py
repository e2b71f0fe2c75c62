"""Reconcile a study file with what is there: which cells are new, done, to be resumed, failed or removed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any, Literal

from simlap.config import Experiment, evaluation_id
from simlap.data.splits import DataInfo
from simlap.errors import ConfigError
from simlap.record.journal import cell_storage, now_ms, read_cell, read_result
from simlap.record.provenance import collect
from simlap.record.view import CellView
from simlap.storage import Storage
from simlap.study.arms import Arm
from simlap.study.events import read_events, stopped_cells
from simlap.study.scheduling import Asha
from simlap.study.spec import Study
from simlap.study.stages import Chain, Use, find_uses, needed_stages
from simlap.train.check import check_experiment

SCHEMA_VERSION = 1
Action = Literal["new", "done", "resume", "evaluate", "stopped", "failed"]
SYMBOLS: dict[Action, str] = {
    "new": "+", "done": "=", "resume": ">", "evaluate": ">", "stopped": "=", "failed": "!",
}  # fmt: skip
"""As `simlap plan` shows them; a stopped cell is done for this study."""


@dataclass(frozen=True)
class PlannedCell:
    """A run that this study needs: an arm's cell, or an earlier stage of some; and what is to be done with it."""

    cell_id: str
    seed: int
    line: str
    """The arm's name, or the stage's."""
    arm: Arm | None
    """None for a stage that is no arm's own cell."""
    experiment: Experiment
    action: Action
    view: CellView
    fingerprint: str
    """Of its dataset."""
    start: str | None
    """Cell id of the stage it starts from, or `weights:` and their fingerprint."""
    level: int
    """How many stages come before it."""

    @property
    def pending(self) -> bool:
        return self.action not in ("done", "stopped")

    @property
    def epochs_left(self) -> int:
        return self.experiment.train.epochs - self.view.epoch if self.pending else 0

    @property
    def protected(self) -> bool:
        """Whether no scheduler may stop it."""
        return self.arm is None or self.arm.protected

    @property
    def place(self) -> dict[str, Any]:
        """What events call it."""
        return {"cell_id": self.cell_id, ("arm" if self.arm else "stage"): self.line}


@dataclass(frozen=True)
class Plan:
    """All cells of a study, seed by seed, so that every arm has a result early."""

    study: Study
    storage: Storage
    cells: list[PlannedCell]
    stages: list[PlannedCell]
    """What cells start from, where it is no arm's own cell; earlier ones first."""
    uses: dict[str, Use]
    """By the cell id of a stage, whether or not it is an arm's own cell: who starts from it."""
    removed: list[str]
    """Arms that an earlier version of the file had."""

    @property
    def pending(self) -> list[PlannedCell]:
        return [cell for cell in (*self.stages, *self.cells) if cell.pending]

    def of_arm(self, arm: Arm) -> list[PlannedCell]:
        return [cell for cell in self.cells if cell.arm is arm]

    def waves(self) -> list[list[PlannedCell]]:
        """The pending stages in the order in which they have to run: each wave needs only those before it."""
        stages = [cell for cell in self.pending if cell.cell_id in self.uses and cell.action != "evaluate"]
        levels = sorted({cell.level for cell in stages})
        return [[cell for cell in stages if cell.level == level] for level in levels]

    def reread(self, cell_ids: Iterable[str]) -> Plan:
        """The plan after these stages have been run, to the end or to a failure."""
        ids = set(cell_ids)

        def now(cell: PlannedCell) -> PlannedCell:
            if cell.cell_id not in ids:
                return cell
            view = read_cell(self.storage, cell.cell_id, seed=cell.seed, evaluate=_protocols(cell.experiment))
            return replace(cell, view=view, action="done" if view.state == "done" else "failed")

        return replace(self, cells=[*map(now, self.cells)], stages=[*map(now, self.stages)])

    def device_hours(self) -> float | None:
        """Estimate for what is pending from the epochs run so far; None where nothing has run yet."""
        groups = (self.stages, self.cells)
        timed = [[row.metrics["time/epoch_s"] for cell in group for row in cell.view.rows] for group in groups]
        known = [*timed[0], *timed[1]]
        if not known:
            return None
        seconds = 0.0
        for group, times in zip(groups, timed, strict=True):
            left = sum(cell.epochs_left * cell.experiment.resources.workers for cell in group)
            seconds += left * mean(times or known)
        return seconds / 3600

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
            "stages": [
                {
                    "name": stage.line,
                    "cell_id": stage.cell_id,
                    "seed": stage.seed,
                    "used_by": self.uses[stage.cell_id].cell_ids,
                }
                for stage in self.stages
            ],
            "arms": [
                {
                    "name": arm.name,
                    "levels": arm.levels,
                    "protected": arm.protected,
                    "baseline": arm.baseline,
                    "evaluate": _protocols(self.of_arm(arm)[0].experiment),
                    "cells": [{"cell_id": cell.cell_id, "seed": cell.seed} for cell in self.of_arm(arm)],
                }
                for arm in self.study.arms
            ],
        }


def make_plan(study: Study, storage: Storage) -> Plan:
    """Check the data of every arm, name every cell, and look at what is there. Raises UserError; starts nothing."""
    folder = storage.child("studies", study.name)
    scheduler = study.spec.scheduler
    stopped = stopped_cells(read_events(folder), scheduler.model_dump()) if isinstance(scheduler, Asha) else {}
    chains = _chains(study)
    uses = find_uses(chains)
    cells = []
    for chain in chains:
        last, arm = chain.stages[-1], chain.arm
        experiment = last.experiment.model_copy(update={"name": f"{study.name}/{arm.name}"})
        view = read_cell(storage, last.cell_id, seed=chain.seed, evaluate=_protocols(experiment))
        # others start from its end, so it has to come to one
        protected = arm.protected or last.cell_id in uses
        action = _action(storage, experiment, view, stopped, protected=protected)
        cells.append(_planned(chain, len(chain.stages) - 1, arm.name, arm, experiment, action, view))
    stages: dict[str, PlannedCell] = {}
    own = {cell.cell_id for cell in cells}
    for chain in chains:
        for level, stage in enumerate(chain.stages[:-1]):
            if stage.cell_id not in stages and stage.cell_id not in own:
                view = read_cell(storage, stage.cell_id, seed=chain.seed)
                action = (
                    "done" if view.state == "done" else _action(storage, stage.experiment, view, {}, protected=True)
                )
                name = uses[stage.cell_id].name
                stages[stage.cell_id] = _planned(chain, level, name, None, stage.experiment, action, view)
    needed = needed_stages([*cells, *stages.values()], storage)
    kept = [
        stage
        if stage.cell_id in needed
        else replace(stage, action="done")  # nothing waits for it: nothing is to be done
        for stage in sorted(stages.values(), key=lambda stage: stage.level)
    ]
    return Plan(study, storage, cells, kept, uses, _removed(study, folder))


def _chains(study: Study) -> list[Chain]:
    """The stages of every cell, checked and named."""
    inspected: dict[str, DataInfo] = {}
    seen: dict[str, str] = {}
    chains = []
    for seed in study.spec.seed_list():
        for arm in study.arms:
            where = f"{study.path}: arm {arm.name}"
            stages = check_experiment(arm.experiment.with_seed(seed), file=where, inspected=inspected)
            identity = stages[-1].cell_id
            if identity in seen:
                raise ConfigError(
                    f"is the same experiment as arm {seen[identity]!r}: its factors change nothing that training depends on",
                    file=str(study.path),
                    key=f"arm {arm.name}",
                )
            seen[identity] = arm.name
            chains.append(Chain(seed, arm, stages))
    return chains


def _planned(
    chain: Chain, level: int, line: str, arm: Arm | None, experiment: Experiment, action: Action, view: CellView
) -> PlannedCell:
    stage = chain.stages[level]
    return PlannedCell(
        stage.cell_id, chain.seed, line, arm, experiment, action, view, stage.info.fingerprint, stage.start, level
    )


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


def _protocols(experiment: Experiment) -> list[dict[str, Any]]:
    return [evaluation.model_dump(mode="json") for evaluation in experiment.evaluate]


def _removed(study: Study, folder: Storage) -> list[str]:
    try:
        earlier = folder.read_json("plan.json")["arms"]
    except FileNotFoundError:
        return []
    return [arm["name"] for arm in earlier if arm["name"] not in {arm.name for arm in study.arms}]
