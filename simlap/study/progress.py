"""What the user sees while a study runs: its table in place on a terminal; in a log a line per finished cell, and the table
now and then."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from simlap.study.capacity import Share
from simlap.study.live import FINISHED, Failure, LiveArm, LiveCell, LiveStudy
from simlap.study.logtable import LogTable
from simlap.study.plan import Plan
from simlap.study.planned import PlannedCell

if TYPE_CHECKING:
    from simlap.study.racing import Racing

_DEFAULT_STORAGE = "runs"


class Progress:
    """Fed by the executor; draws on the console. Use as a context manager.

    Args:
        plan: what is to be run.
        console: to draw on.
    """

    def __init__(self, plan: Plan, console: Console) -> None:
        self.console, self.storage = console, plan.storage
        self.metric = plan.study.spec.metric.name
        self.cells: dict[str, LiveCell] = {}
        self._planned: dict[str, PlannedCell] = {}
        """Also of cells that the newest plan has no more."""
        self._since: dict[str, float] = {}
        self._told_of_logs = False
        self.study = LiveStudy(plan.study.name, self.metric, [], race=plan.racing is not None)
        if plan.guard is not None:
            self.study.budget = plan.guard.uses
        self._pending: set[str] = set()
        self.update(plan)
        self._finished = 0
        self._live = (
            Live(
                get_renderable=lambda: self.study.render(console.width, console.height),
                console=console,
                refresh_per_second=2,
            )
            if console.is_terminal
            else None
        )
        self._log = LogTable(self.study, console) if self._live is None else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        if self._log:  # the report has the arms, and follows
            self._log.totals(self._finished)

    def update(self, plan: Plan) -> None:
        """Show another plan of the study, made since a search has gone on. What is known of cells stays."""
        known, self.cells = self.cells, {}
        lines: dict[str, LiveArm] = {}
        for planned in plan.everything:
            arm, is_search = planned.arm, planned.trial is not None
            fresh = LiveArm(
                planned.line, [], baseline=arm is not None and arm.baseline and not is_search, is_stage=arm is None,
                is_search=is_search,
            )  # fmt: skip
            line = lines.setdefault(planned.line, fresh)
            cell = known.get(planned.cell_id) or self._cell(planned)
            self.cells[planned.cell_id], self._planned[planned.cell_id] = cell, planned
            line.cells.append(cell)
        self.study.arms, self.study.race = [*lines.values()], plan.racing is not None
        now = {cell.cell_id for cell in (*plan.pending, *plan.later) if cell.selected}
        self._pending = {cell_id for cell_id in self._pending if cell_id in self.cells} | now

    def _cell(self, planned: PlannedCell) -> LiveCell:
        facts, experiment = planned.facts, planned.stage.experiment
        value = facts.metrics.get(self.metric)
        devices = facts.devices if facts.epoch else Share.of(experiment.resources).devices
        return LiveCell(
            planned.cell_id, planned.seed, _state(planned), facts.epoch, experiment.train.epochs,
            devices, {} if value is None else {facts.epoch: value}, facts.seconds, facts.epoch,
        )  # fmt: skip

    def anew(self, cell_id: str) -> None:
        """What was known of a cell has been discarded."""
        cell = self.cells[cell_id]
        cell.state, cell.epoch, cell.values, cell.seconds, cell.timed = "waiting", 0, {}, 0.0, 0
        self.study.touch(cell)

    def started(self, cell_id: str, devices: float) -> None:
        """A cell runs now, on so many devices."""
        cell = self.cells[cell_id]
        cell.state, cell.devices, self._since[cell_id] = "running", devices, time.monotonic()
        self.study.touch(cell)

    def reported(self, cell_id: str, epoch: int, value: float | None, seconds: float | None = None) -> None:
        """An epoch is finished.

        Args:
            cell_id: of the cell.
            epoch: that it stands at.
            value: of the metric, where it was measured.
            seconds: that the epoch took, where it says so (default: those since the last report).
        """
        cell, now = self.cells[cell_id], time.monotonic()
        if epoch > cell.epoch:
            cell.seconds += seconds if seconds is not None else now - self._since.get(cell_id, now)
            cell.timed += 1
        self._since[cell_id], cell.epoch = now, epoch
        self.study.touch(cell)
        if value is not None:
            cell.values[epoch] = value

    def retrying(self, cell_id: str, kind: str, reason: str, why: str) -> None:
        """An attempt failed, and there will be another one."""
        self.cells[cell_id].state = "waiting"
        self.study.touch(self.cells[cell_id])
        self._failed(cell_id, kind, reason, again=True)
        self._say(Text(f"again    {self._where(cell_id)} ({cell_id}) {kind}: {reason} [{why}]", style="yellow"))
        self._tell_of_logs(cell_id)

    def resized(self, cell_id: str, workers: int, of: int) -> None:
        """A run with fewer workers than it asks for was stopped: it goes on with more."""
        self.cells[cell_id].state = "waiting"
        self.study.touch(self.cells[cell_id])
        self._say(Text(f"grows    {self._where(cell_id)} ({cell_id}): it had {workers} of {of} workers", style="dim"))

    def held(self, cell_id: str, by: str) -> None:
        """Another launch is at work on a cell; what it finds is taken."""
        self.cells[cell_id].state = "waiting"
        self._say(Text(f"waits    {self._where(cell_id)} ({cell_id}): it is being run by {by}", style="dim"))

    def ended(self, cell_id: str, state: str, reason: str = "", kind: str = "failed") -> None:
        """A cell is done, stopped or failed; a failure is printed at once, in every kind of console."""
        cell = self.cells[cell_id]
        cell.state = state
        self.study.touch(cell)
        self._finished += state in FINISHED and cell_id in self._pending
        if state == "failed":
            self._failed(cell_id, kind, reason, again=False)
            self._say(Text(f"failed   {self._where(cell_id)} ({cell_id}): {reason}", style="red"))
            self._tell_of_logs(cell_id)
        elif self._log:
            value = f"{self.metric} {cell.values[max(cell.values)]:.4f}" if cell.values else ""
            left = self.study.time_left()
            line = f"{state:<8} {self._where(cell_id):<42} epoch {cell.epoch:>3}  {value}  "
            most = "at most " if self.study.race else ""
            left = f", {most}{left} left]" if left else "]"
            self._say(Text(line + f"[{self._finished}/{most}{len(self._pending)}{left}"))
        if self._log:
            self._log.advance(self._finished, len(self._pending), totals=False)

    def decided(self, racing: Racing, cells: Sequence[PlannedCell], stopped: Sequence[PlannedCell]) -> None:
        """A race has looked.

        Args:
            racing: where it stands.
            cells: of the arms, as it has marked them.
            stopped: those that were stopped just now.
        """
        lines = {line.name: line for line in self.study.arms}
        for arm, decision in racing.standing.verdicts.items():
            if arm in lines and not lines[arm].verdict:  # an arm that no values were found for has no line
                lines[arm].verdict = decision.verdict
                if self._log:
                    self._say(Text(f"{decision.verdict:<8} {arm}  {decision.reason}"))
        for cell in stopped:
            self.ended(cell.cell_id, "stopped")
        for cell in cells:
            if cell.action == "spared":
                self.cells[cell.cell_id].state = "spared"
                self._pending.discard(cell.cell_id)

    def _say(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)

    def _where(self, cell_id: str) -> str:
        planned = self._planned[cell_id]
        trial = "" if planned.trial is None else f" · trial {planned.trial}"
        return f"{planned.line}{trial} · seed {planned.seed}"

    def _failed(self, cell_id: str, kind: str, reason: str, *, again: bool) -> None:
        self.study.failures.append(Failure(self._where(cell_id), cell_id, kind, reason, again))

    def _tell_of_logs(self, cell_id: str) -> None:
        """With the first error: how to see what the cell printed."""
        if self._told_of_logs:
            return
        self._told_of_logs = True
        words = ["simlap", "logs", cell_id]
        local = self.storage.local_path()
        if local is None or local != Path(_DEFAULT_STORAGE).absolute():
            words += ["--storage", self.storage.uri]
        self._say(Text(f"         its log: {shlex.join(words)}"))


def _state(planned: PlannedCell) -> str:
    """As a cell stands before anything is run."""
    if planned.pending:
        return "waiting"
    if planned.action == "spared":
        return "spared"
    return planned.facts.state if planned.facts.state in FINISHED else "waiting"
