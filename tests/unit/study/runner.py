"""Launches of a race without Ray: the driver's own rounds, with cells that come to known values at once."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from simlap.config import yaml
from simlap.record.journal import cell_storage, read_progress, read_race, read_rows
from simlap.record.view import RaceView
from simlap.run.cluster import Node
from simlap.storage import Storage
from simlap.study.budget import Budget
from simlap.study.events import ENVELOPE, EventLog, read_events
from simlap.study.feed import CellFeed
from simlap.study.options import Options
from simlap.study.plan import Plan, make_plan
from simlap.study.planned import PlannedCell
from simlap.study.progress import Progress
from simlap.study.racelog import RaceLog, record_race
from simlap.study.rounds import Rounds
from simlap.study.spec import load_study
from simlap.study.stale import discard, to_rerun
from simlap.study.waiting import Attempt
from tests.tiny import TREE
from tests.unit.study.pretend import pretend

STUDY = """
name: small
base: base.yaml
set: {train.epochs: 4}
factors: {lr: {path: optim.lr, levels: [0.01, 0.02, 0.03, 0.04, 0.05]}}
baseline: {lr: 0.01}
protect: [{lr: 0.05}]
seeds: 8
scheduler: {kind: race, first_seeds: 4, step: 2, futility: 0.1, futility_epochs: [2]}
"""
EFFECTS = {"lr=0.01": 0.5, "lr=0.02": 0.6, "lr=0.03": 0.4, "lr=0.04": 0.5, "lr=0.05": 0.52}


class Killed(Exception):
    """As if the process had died here."""


class Feed(CellFeed):
    """Hands out ids instead of Tune's trials."""

    def _trial(self, trial_id: str, attempt: Attempt) -> Any:
        return trial_id

    def start(self) -> str | None:
        """As Tune asks for a trial."""
        found: Any = self.next_trial()
        return None if found is None else str(found)

    def end(self, trial_id: str) -> PlannedCell:
        """As Tune does, and the callback after it."""
        self.on_trial_complete(trial_id)
        return self.attempts.pop(trial_id).cell


class Runner:
    """Launches of one study, in which cells come to known values at once.

    Args:
        folder: of the study.
        text: of its file.
        fails: (arm, seed) of cells that fail, and after which epoch.
    """

    def __init__(self, folder: Path, text: str = STUDY, fails: dict[tuple[str, int], int] | None = None) -> None:
        self.folder, self.text, self.fails = folder, text, fails or {}
        self.ran: list[tuple[str, int, int | None]] = []
        """Arm, seed and `until` of every cell that was run, in order."""
        self.batches: list[int] = []

    @property
    def storage(self) -> Storage:
        return Storage(self.folder / "runs")

    def plan(self, options: Options | None = None) -> Plan:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "base.yaml").write_text(yaml.dump({**TREE, "evaluate": [{"kind": "probe"}]}))
        (self.folder / "study.yaml").write_text(self.text)
        return make_plan(load_study(self.folder / "study.yaml"), self.storage, options)

    def launch(self, options: Options | None = None, *, mix: int | None = None, kill_after: int | None = None,
               budget: Budget | None = None, slots: int = 64) -> bool:  # fmt: skip
        """As `simlap ablate`.

        Args:
            options: of the launch.
            mix: of the cells that run, a random one ends next (default: the one that has run longest).
            kill_after: so many cells.
            budget: of the study.
            slots: cells that run at a time.
        """
        made = self.plan(options)
        if budget is not None:
            study = replace(made.study, spec=made.study.spec.model_copy(update={"budget": budget}))
            made = make_plan(study, self.storage, options)
        record_race(made)
        if stale := to_rerun(made):
            discard(self.storage, stale)
            made = self.plan(options)
        made.save()
        events = EventLog(self.storage.child("studies", "small"))
        rounds = None
        if made.racing is not None:
            rounds = Rounds(
                made,
                progress=Progress(made, Console(file=io.StringIO())),
                log=RaceLog(made, events),
                fail=lambda cell, reason: pretend(cell, "failed", 0),
            )

        def more() -> list[PlannedCell]:
            batch = rounds() if rounds is not None else []
            self.batches += [len(batch)] if batch else []
            return batch

        feed = Feed(
            made.pending if rounds is None else (), nodes=lambda: {"a": Node(float(slots), 0.0)},
            make_config=lambda attempt: {}, trainables=("a", "b"), head="h", guard=made.guard, more=more,
        )  # fmt: skip
        chosen, running = random.Random(mix), list[str]()
        while True:
            while (trial := feed.start()) is not None:
                running.append(trial)
                cell = feed.attempts[trial].cell
                events.write("cell_started", **cell.place, seed=cell.seed)
            if not running:
                return (rounds is None or rounds.finished) and not made.held_back
            cell = feed.end(running.pop(chosen.randrange(len(running)) if mix is not None else 0))
            self.run(cell)
            if (cell.line, cell.seed) in self.fails:
                events.write("cell_failed", **cell.place, reason="it was told to")
            if kill_after is not None and len(self.ran) >= kill_after:
                raise Killed

    def run(self, cell: PlannedCell) -> None:
        arm, seed = cell.line, cell.seed
        self.ran.append((arm, seed, cell.until))
        shared, own = np.random.default_rng(seed), np.random.default_rng([seed, int(1000 * float(arm[3:]))])
        noise = shared.normal(0, 0.1) + own.normal(0, 0.01)
        ends: dict[str, Any] = {"values": lambda epoch: EFFECTS[arm] * epoch / 4 + noise}
        if (arm, seed) in self.fails:
            pretend(cell, "failed", self.fails[arm, seed], **ends)
        elif cell.until is not None:
            pretend(cell, "interrupted", cell.until, **ends)
        else:
            pretend(cell, **ends)

    @property
    def race(self) -> RaceView:
        found = read_race(self.storage.child("studies", "small"))
        assert found is not None
        return found

    def decisions(self) -> list[str]:
        found = [e for e in read_events(self.storage.child("studies", "small")) if e["type"] == "race_decision"]
        return sorted(json.dumps({k: v for k, v in e.items() if k not in ENVELOPE}, sort_keys=True) for e in found)

    def verdicts(self) -> dict[str, str]:
        return {arm: decision.verdict for arm, decision in self.race.decisions.items() if decision.leaves}

    def states(self) -> dict[tuple[str, int], tuple[str, int]]:
        found: dict[tuple[str, int], tuple[str, int]] = {}
        for cell in self.plan().cells:
            folder = cell_storage(self.storage, cell.cell_id)
            progress = read_progress(folder, read_rows(folder))
            found[cell.line, cell.seed] = (progress.state, progress.reached)
        return found
