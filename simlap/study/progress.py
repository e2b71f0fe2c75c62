"""What the user sees while a study runs: a line per stage and arm in place on a terminal, one per finished cell elsewhere."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from simlap.study.plan import Plan, PlannedCell

_FINISHED = ("done", "stopped", "failed")


@dataclass
class _Cell:
    planned: PlannedCell
    state: str
    epoch: int
    value: float | None
    started: float | None = None
    epochs_here: int = 0


class Progress:
    """Fed by the executor; draws on the console. Use as a context manager."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self.console = console
        self.metric = plan.study.spec.metric.name
        self.cells: dict[str, _Cell] = {}
        self.lines: dict[str, list[_Cell]] = {}
        for planned in (*plan.stages, *plan.cells):
            state = {"done": "done", "stopped": "stopped"}.get(planned.action, "waiting")
            value = planned.view.metric_at(self.metric, planned.view.epoch)
            cell = _Cell(planned, state, planned.view.epoch, value)
            self.cells[planned.cell_id] = cell
            self.lines.setdefault(planned.line, []).append(cell)
        self._total = sum(cell.planned.epochs_left for cell in self.cells.values())
        self._pending = len(plan.pending)
        self._began = time.monotonic()
        self._live = (
            Live(get_renderable=self.table, console=console, refresh_per_second=2) if console.is_terminal else None
        )

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, cell_id: str) -> None:
        cell = self.cells[cell_id]
        cell.state, cell.started = "running", time.monotonic()

    def reported(self, cell_id: str, epoch: int, value: float | None) -> None:
        cell = self.cells[cell_id]
        cell.epochs_here += max(0, epoch - cell.epoch)
        cell.epoch = epoch
        cell.value = value if value is not None else cell.value

    def ended(self, cell_id: str, state: str, note: str = "") -> None:
        """A cell is done, stopped or failed; a failure is printed at once, in every kind of console."""
        cell = self.cells[cell_id]
        cell.state = state
        where = f"{cell.planned.line} · seed {cell.planned.seed}"
        if state == "failed":
            self.console.print(Text(f"failed   {where} ({cell_id}): {note}", style="red"), soft_wrap=True)
        elif self._live is None:
            finished = sum(c.state in _FINISHED and c.planned.pending for c in self.cells.values())
            value = "" if cell.value is None else f"{self.metric} {cell.value:.4f}"
            left = self._time_left()
            line = f"{state:<8} {where:<42} epoch {cell.epoch:>3}  {value}  [{finished}/{self._pending}"
            self.console.print(Text(line + (f", {left} left]" if left else "]")), soft_wrap=True)

    def table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("arm", no_wrap=True, overflow="ellipsis", ratio=1)
        for column in ("seeds", "running", "stopped", "epochs", self.metric):
            table.add_column(column, justify="right", no_wrap=True)
        for name, cells in self.lines.items():
            count = {state: sum(cell.state == state for cell in cells) for state in (*_FINISHED, "running")}
            epochs = sorted(cell.epoch for cell in cells)
            values = [cell.value for cell in cells if cell.value is not None]
            table.add_row(
                Text(name),
                f"{count['done']}/{len(cells)}" + (f" [red]{count['failed']} failed[/]" if count["failed"] else ""),
                str(count["running"] or ""),
                str(count["stopped"] or ""),
                f"{epochs[0]}–{epochs[-1]}" if epochs[0] != epochs[-1] else str(epochs[0]),
                f"{statistics.mean(values):.4f}" if values else "",
            )
        left = self._time_left()
        done = sum(cell.state in _FINISHED and cell.planned.pending for cell in self.cells.values())
        table.caption = f"{done}/{self._pending} cells" + (f", about {left} left" if left else "")
        table.caption_justify = "left"
        return table

    def _time_left(self) -> str:
        here = sum(cell.epochs_here for cell in self.cells.values())
        left = sum(
            cell.planned.experiment.train.epochs - cell.epoch
            for cell in self.cells.values()
            if cell.planned.pending and cell.state not in _FINISHED
        )
        if not here or not left:
            return ""
        seconds = (time.monotonic() - self._began) * left / here
        return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
