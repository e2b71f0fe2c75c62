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
from simlap.record.journal import now_ms, read_cell, read_race
from simlap.record.view import PAUSED, CellView
from simlap.storage import Storage
from simlap.study.budget import Budget, Use, uses
from simlap.study.capacity import Share
from simlap.study.events import launch_ms, segments
from simlap.study.live import Failure, LiveArm, LiveCell, LiveStudy
from simlap.study.logtable import LogTable
from simlap.study.pulse import Pulse
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

    Each time it looks at the study's lease, lists its events, reads the new ones, and the journals of cells that run or that
    these are about.

    Args:
        storage: that holds it.
        name: of the study.
        console: to draw on; where it is no terminal, failures when they happen, and the table now and then.
        every_s: seconds between two looks.
        until: asked after each look whether that was the last one (default: the launch has ended).
    """
    _wait_for_plan(storage, name, every_s)
    seen = Follower(storage, name)
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    log = LogTable(seen.study, console) if live is None else None
    if live:
        live.start()
    try:
        first = True
        while True:
            failures = seen.look()
            is_last = until() if until else not seen.running
            if live:
                live.update(seen.study.render(console.width, None if is_last else console.height), refresh=not is_last)
            if log:
                _tell(log, seen, failures, whole=first or is_last)
            if is_last:
                break
            first = False
            time.sleep(every_s)
    finally:
        if live:
            live.stop()
    if seen.died:
        console.print(
            Text("its launch is gone, or does not answer: apply the study again, and it goes on", style="yellow")
        )


def _wait_for_plan(storage: Storage, name: str, every_s: float) -> None:
    """A launch holds the study before it has written what there is to be seen."""
    folder = storage.child("studies", name)
    pulse = Pulse(folder)
    while not folder.exists("plan.json") and pulse.look() == "alive":
        time.sleep(every_s)


def _tell(log: LogTable, seen: Follower, failures: Iterable[Failure], *, whole: bool) -> None:
    for failure in failures:
        what = "again" if failure.again else "failed"
        text = f"{what:<8} {failure.where} ({failure.cell_id}) {failure.kind}: {failure.reason}"
        log.console.print(Text(text), soft_wrap=True)
    ended, of = seen.study.ended
    if whole:
        log.print(ended)
    else:
        log.advance(ended, of, totals=True)


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
        self.running = False
        """Whether a launch is at work, as far as its lease and its events tell."""
        self.died = False
        """Whether the newest launch is gone without having said that it ended."""
        self._pulse = Pulse(self.folder)
        self._is_open = self._has_ended = False
        """Whether the newest launch has said that it began and not yet that it ended; whether it ended after the first look."""
        self._at_work: set[str] = set()
        """Cells that it has begun, or that it waits for another launch to end."""
        self._spans: dict[int, tuple[int, int, float]] = {}
        """Launch -> time of its first event and of its newest one, and how many milliseconds it had taken by then."""
        self._begun: dict[str, bool] = {}
        """Cell id -> whether it is an arm's or a trial, of all that the study's launches began."""
        self._gone_s: dict[str, float] = {}
        """Device-seconds of those of them that the study has no more."""
        self._told = 0
        """Failures that `look` has returned."""
        self._read: set[tuple[int, int]] = set()
        self._cells: dict[str, LiveCell] = {}
        self._where: dict[str, str] = {}
        history = list(self._events())  # before the plan, which then is that of the newest launch among them
        try:
            plan = self.folder.read_json("plan.json")
        except FileNotFoundError:
            where, known = storage.describe("studies"), storage.list("studies")
            raise ConfigError("no such study", file=where, value=name, choices=known) from None
        self._metric = plan["metric"]
        self.study = LiveStudy(name, self._metric, [], budget=self._uses)
        self._show(plan)
        for event in history:
            self._take(event)
        self._has_ended = False

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
        self._budget = Budget(**plan.get("budget", {}))
        begun = set(self.storage.list("cells"))
        for cell_id in (self._cells.keys() - before) & begun:
            self._refresh(cell_id)
        self._read_race()

    def look(self) -> list[Failure]:
        """Read what is new. Returns the newest launch's failures that were not returned before."""
        # first, so that all is read below that was written while somebody held the study
        pulse = self._pulse.look()
        changed: set[str] = set()
        events = list(self._events())
        unknown = any("cell_id" in event and event["cell_id"] not in self._cells for event in events)
        if unknown or any(event["type"] in ("launch", "search_asked", "search_decision") for event in events):
            self._show(self.folder.read_json("plan.json"))
        for event in events:
            changed |= self._take(event)
        for cell_id in changed | {cell.cell_id for cell in self._cells.values() if cell.state == "running"}:
            self._refresh(cell_id)
        # who holds the study without having begun is about to, and who has ended is writing the report
        self.running = pulse == "alive" and not self._has_ended
        self.died = pulse != "alive" and self._is_open
        for cell in self._cells.values():
            if cell.state == "running" and not (self.running and cell.cell_id in self._at_work):
                cell.state = "interrupted"  # its journal could not say so
        if self._race_has_looked:
            self._read_race()
        new, self._told = self.study.failures[self._told :], len(self.study.failures)
        return new

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
        kind, cell_id = event["type"], event.get("cell_id", "")
        first, _, taken = self._spans.get(event["launch"], (event["t"], 0, 0.0))
        self._spans[event["launch"]] = (first, event["t"], max(taken, launch_ms(event, first)))
        if kind in ("launch", "launch_ended") and event["launch"] == max(self._spans):  # one taken over may end later
            self._is_open, self._has_ended = kind == "launch", kind == "launch_ended"
        if kind == "launch":
            self._at_work.clear()
            self.study.failures.clear()
            self._told = 0
        if kind == "cell_started":
            self._begun[cell_id] = "stage" not in event
        if kind in ("cell_started", "cell_held"):
            self._at_work.add(cell_id)
        self._race_has_looked |= kind == "race_decision"
        if cell_id not in self._cells:
            return set()
        if kind in ("cell_failed", "cell_retried"):
            what = event.get("failure", "failed")
            failure = Failure(self._where[cell_id], cell_id, what, event["reason"] or "", again=kind == "cell_retried")
            self.study.failures.append(failure)
        return {cell_id}

    def _refresh(self, cell_id: str) -> None:
        cell, view = self._cells[cell_id], read_cell(self.storage, cell_id)
        before = cell.state, cell.epoch
        cell.state = "waiting" if view.state == "new" else "paused" if view.reason == PAUSED else view.state
        cell.epoch = view.epoch
        cell.epochs = view.config.get("train", {}).get("epochs", cell.epochs)
        cell.devices = _devices(view)
        cell.values = {row.epoch: row.metrics[self._metric] for row in view.rows if self._metric in row.metrics}
        cell.seconds, cell.timed = view.seconds, len(view.rows)
        if (cell.state, cell.epoch) != before:
            self.study.touch(cell)

    def _uses(self) -> list[Use]:
        """What is used of the budget, as the launches themselves count, as far as it is written down."""
        hours = sum(taken for _, _, taken in self._spans.values())
        if self.running and self._is_open:
            # the clock may be another machine's: this is shown, and nothing is decided by it
            hours += max(0, now_ms() - self._spans[max(self._spans)][1])
        seconds = sum(map(self._device_s, self._begun)) if self._budget.device_hours else 0.0
        return uses(
            self._budget, device_hours=seconds / 3600, wall_hours=hours / 3.6e6, cells=sum(self._begun.values())
        )  # fmt: skip

    def _device_s(self, cell_id: str) -> float:
        cell = self._cells.get(cell_id)
        if cell is not None:
            return cell.seconds * cell.devices
        if cell_id not in self._gone_s:
            view = read_cell(self.storage, cell_id)
            self._gone_s[cell_id] = view.seconds * _devices(view)
        return self._gone_s[cell_id]


def _devices(view: CellView) -> float:
    return Share.of(Resources(**view.config.get("resources", {}))).devices
