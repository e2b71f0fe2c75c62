"""A study drawn from its records alone, wherever it runs: its events say which cells have changed, and only these are read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from simlap.config.schema import Resources
from simlap.errors import ConfigError
from simlap.record.journal import read_cell, read_race
from simlap.record.view import PAUSED
from simlap.storage import Storage
from simlap.study.capacity import Share
from simlap.study.events import segments
from simlap.study.live import Failure, LiveArm, LiveCell, LiveStudy
from simlap.study.searches import trial_cells

REFRESH_S = 2.0


def watch(
    storage: Storage,
    name: str,
    console: Console,
    *,
    every_s: float = REFRESH_S,
    until: Callable[[], bool] | None = None,
) -> None:
    """Draw a study from its records, again and again, until its launch has ended or the user has had enough.

    Each time it lists the study's events, reads the new ones, and the journals of cells that run or that these are about.

    Args:
        storage: that holds it.
        name: of the study.
        console: to draw on; where it is no terminal, a line whenever the totals have changed.
        every_s: seconds between two looks.
        until: asked after each look whether that was the last one (default: the launch has ended).
    """
    seen = Follower(storage, name)
    last = ""
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if live:
        live.start()
    try:
        while True:
            seen.look()
            if live:
                live.update(seen.study.render(console.width), refresh=True)
            elif seen.study.totals() != last:
                last = seen.study.totals()
                console.print(Text(last), soft_wrap=True)
            if until() if until else not seen.running:
                return
            time.sleep(every_s)
    finally:
        if live:
            live.stop()


class Follower:
    """A study as its events and journals have it, kept up to date.

    Args:
        storage: that holds it.
        name: of the study.

    Raises:
        ConfigError: there is no such study.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage, self.folder = storage, storage.child("studies", name)
        try:
            plan = self.folder.read_json("plan.json")
        except FileNotFoundError:
            where, known = storage.describe("studies"), storage.list("studies")
            raise ConfigError("no such study", file=where, value=name, choices=known) from None
        self.running = False
        """Whether the newest launch has not ended, as far as its events tell."""
        self._metric = plan["metric"]
        self._read: set[tuple[int, int]] = set()
        self._cells: dict[str, LiveCell] = {}
        self._where: dict[str, str] = {}
        self.study = LiveStudy(name, self._metric, [])
        self._show(plan)

    def _show(self, plan: Mapping[str, Any]) -> None:
        """The lines of a plan. What is known of its cells stays."""
        epochs = plan["epochs"]
        arms = [LiveArm(arm["name"], [], baseline=arm["baseline"]) for arm in plan["arms"]]
        self._protected = {arm["name"] for arm in plan["arms"] if arm["protected"]}
        stages: dict[str, LiveArm] = {}
        before = set(self._cells)
        for stage in plan.get("stages", []):
            line = stages.setdefault(stage["name"], LiveArm(stage["name"], [], is_stage=True))
            self._add(line, stage["cell_id"], stage["seed"], epochs)
        for search in plan.get("searches", []):
            line = stages.setdefault(search["name"], LiveArm(search["name"], [], is_search=True))
            for cell in trial_cells({"searches": [search]}):
                self._add(line, cell["cell_id"], cell["seed"], epochs)
            seeds = max((len(trial["cells"]) for trial in search["trials"]), default=1)
            to_come = (search["of"] - len(search["trials"])) * seeds
            line.cells += [LiveCell("", 0, "waiting", 0, epochs, 1) for _ in range(to_come)]
        for arm, planned in zip(arms, plan["arms"], strict=True):
            for cell in planned["cells"]:
                self._add(arm, cell["cell_id"], cell["seed"], epochs)
            if not planned["cells"]:  # its search goes on, or has found nothing
                lost = any(search["failed"] and arm.name in search["arms"] for search in plan.get("searches", []))
                state = "failed" if lost else "waiting"
                arm.cells += [LiveCell("", seed, state, 0, epochs, 1) for seed in plan["seeds"]]
        self.study.arms, self.study.race = [*stages.values(), *arms], plan["scheduler"] == "race"
        begun = set(self.storage.list("cells"))
        for cell_id in (self._cells.keys() - before) & begun:
            self._refresh(cell_id)
        self._read_race()

    def look(self) -> None:
        """Read what is new."""
        changed: set[str] = set()
        events = list(self._events())
        unknown = any("cell_id" in event and event["cell_id"] not in self._cells for event in events)
        if unknown or any(event["type"] in ("search_asked", "search_decision") for event in events):
            self._show(self.folder.read_json("plan.json"))
        for event in events:
            changed |= self._take(event)
        for cell_id in changed | {cell.cell_id for cell in self._cells.values() if cell.state == "running"}:
            self._refresh(cell_id)
        if self._race_has_looked:
            self._read_race()

    def _read_race(self) -> None:
        """The verdicts, and the cells that are not needed for others."""
        self._race_has_looked = False
        race = read_race(self.folder) if self.study.race else None
        for line in self.study.arms if race is not None else ():
            decision = race.decisions.get(line.name) if race is not None else None
            line.verdict = decision.verdict if decision is not None and decision.leaves else ""
            needless = race is not None and (race.over or (line.verdict and line.name not in self._protected))
            for cell in line.cells:
                if needless and cell.state == "waiting":
                    cell.state = "spared"

    def _add(self, line: LiveArm, cell_id: str, seed: int, epochs: int) -> None:
        cell = self._cells.setdefault(cell_id, LiveCell(cell_id, seed, "waiting", 0, epochs, 1))
        self._where.setdefault(cell_id, f"{line.name} · seed {seed}")
        line.cells.append(cell)

    def _events(self) -> Iterable[dict[str, Any]]:
        """Those that were not read before. A block holds events that may have been read one by one."""
        for segment in segments(self.folder):
            span = {(segment.launch, number) for number in range(segment.first, segment.last + 1)}
            if span <= self._read:
                continue
            try:
                lines = self.folder.read(f"events/{segment.name}").decode().splitlines()
            except FileNotFoundError:
                continue  # joined into a block since it was listed: the next look finds that
            for number, line in enumerate(lines, start=segment.first):
                if (segment.launch, number) not in self._read:
                    self._read.add((segment.launch, number))
                    yield json.loads(line)

    def _take(self, event: Mapping[str, Any]) -> set[str]:
        """The cells that an event changes."""
        if event["type"] in ("launch", "launch_ended"):
            self.running = event["type"] == "launch"
            return set()
        self._race_has_looked |= event["type"] == "race_decision"
        cell_id = event.get("cell_id")
        if cell_id not in self._cells:
            return set()
        if event["type"] in ("cell_failed", "cell_retried"):
            again = event["type"] == "cell_retried"
            kind = event.get("failure", "failed")
            self.study.failures.append(Failure(self._where[cell_id], cell_id, kind, event["reason"] or "", again))
        return {cell_id}

    def _refresh(self, cell_id: str) -> None:
        cell, view = self._cells[cell_id], read_cell(self.storage, cell_id)
        cell.state = "waiting" if view.state == "new" else "paused" if view.reason == PAUSED else view.state
        cell.epoch = view.epoch
        cell.epochs = view.config.get("train", {}).get("epochs", cell.epochs)
        cell.devices = Share.of(Resources(**view.config.get("resources", {}))).devices
        cell.values = {row.epoch: row.metrics[self._metric] for row in view.rows if self._metric in row.metrics}
        cell.seconds, cell.timed = view.seconds, len(view.rows)
