"""How far a study is, as a table: an arm a line, as much of it as the console is wide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from simlap.report.stats import estimate, paired

FAILURES = 3
"""So many of the newest failures are shown."""
FINISHED = ("done", "stopped", "failed")
_NARROWEST = 24
"""Columns that an arm's name gets, before others are left out."""
_GAP = 2
_DROPPED = ("hours", "stopped at", "left", "state", "change", "value")
"""In this order, where the console is too narrow for all."""


@dataclass
class LiveCell:
    """What is known of a cell now."""

    cell_id: str
    seed: int
    state: str
    """waiting, running, interrupted, paused (the race waits for others), spared (it does not need it), or one of `FINISHED`."""
    epoch: int
    epochs: int
    """Of a full run."""
    devices: float
    """That it takes at a time: `simlap.study.capacity.devices`."""
    values: dict[int, float] = field(default_factory=dict)
    """The metric by epoch."""
    seconds: float = 0.0
    """Of its epochs, so far."""
    timed: int = 0
    """Epochs that these seconds are of."""


@dataclass
class LiveArm:
    """An arm, or a stage that arms share."""

    name: str
    cells: list[LiveCell]
    baseline: bool = False
    is_stage: bool = False
    verdict: str = ""
    """The race's, once it is decided."""
    is_search: bool = False
    """Its cells are trials: a mean over them says nothing."""


@dataclass(frozen=True)
class Failure:
    """An attempt that failed."""

    where: str
    cell_id: str
    kind: str
    reason: str
    again: bool
    """Whether it is tried again."""


@dataclass
class LiveStudy:
    """Everything that is shown."""

    name: str
    metric: str
    arms: list[LiveArm]
    failures: list[Failure] = field(default_factory=list)
    budget_hours: float | None = None
    """Device-hours."""
    race: bool = False
    """Whether some of the cells may never be needed."""

    def render(self, width: int) -> RenderableType:
        """The table, the totals and the newest failures, in so many columns."""
        baseline = next((arm for arm in self.arms if arm.baseline), None)
        rows = [_row(arm, baseline) for arm in self.arms]
        heads = {
            "seeds": "seeds", "state": "state", "value": self.metric, "change": "Δ", "stopped at": "stopped at",
            "left": "left", "hours": "dev-h",
        }  # fmt: skip
        widths = {key: max(cell_len(head), *(cell_len(row[key]) for row in rows)) for key, head in heads.items()}
        names = max(3, *(cell_len(row["arm"]) for row in rows))
        shown = [key for key in heads if any(row[key] for row in rows) or key == "seeds"]
        for key in _DROPPED:
            if width - sum(widths[k] + _GAP for k in shown) >= min(names, _NARROWEST):
                break
            shown = [k for k in shown if k != key]
        room = max(3, min(names, width - sum(widths[k] + _GAP for k in shown)))
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0), collapse_padding=True)
        table.add_column("arm", no_wrap=True, overflow="ellipsis", width=room)
        for key in shown:
            left = key == "state"
            table.add_column(Text(heads[key]), justify="left" if left else "right", no_wrap=True, width=widths[key])
        for row in rows:
            table.add_row(Text(row["arm"]), *(Text(row[key]) for key in shown))
        lines = [Text(self.totals(), no_wrap=True, overflow="ellipsis")]
        for failure in self.failures[-FAILURES:]:
            what = f"{failure.kind}, tried again" if failure.again else failure.kind
            text = f"{failure.where} ({failure.cell_id}) {what}: {failure.reason}"
            style = "yellow" if failure.again else "red"
            lines.append(Text(" ".join(text.split()), style=style, no_wrap=True, overflow="ellipsis"))
        return Group(table, *lines)

    def totals(self) -> str:
        """In a line."""
        cells = [cell for arm in self.arms for cell in arm.cells]
        counts = {state: sum(cell.state == state for cell in cells) for state in (*FINISHED, "running")}
        most = "at most " if self.race else ""
        planned = sum(cell.state != "spared" for cell in cells)
        parts = [f"{counts['done'] + counts['stopped']}/{most}{planned} cells"]
        parts += [f"{counts[state]} {state}" for state in ("running", "stopped", "failed") if counts[state]]
        hours = sum(map(_hours, cells))
        budget = "" if self.budget_hours is None else f" of {self.budget_hours:g}"
        parts.append(f"{hours:.2g}{budget} device-hours")
        if left := self.time_left():
            parts.append(f"{most or 'about '}{left} left")
        return ", ".join(parts)

    def time_left(self) -> str:
        """From the epochs timed so far and the cells that run now; empty where that is not known."""
        cells = [cell for arm in self.arms for cell in arm.cells]
        return _time_left(cells, _seconds_per_epoch(cells))


def _row(arm: LiveArm, baseline: LiveArm | None) -> dict[str, str]:
    cells = arm.cells
    count = {state: sum(cell.state == state for cell in cells) for state in (*FINISHED, "running", "interrupted")}
    states = [f"{count[state]} {state}" for state in ("running", "failed", "stopped") if count[state]]
    if not states:
        states = ["done" if count["done"] == len(cells) else "interrupted" if count["interrupted"] else "waiting"]
    if arm.verdict:
        states = [arm.verdict, *([f"{count['running']} running"] if count["running"] else [])]
    stopped = sorted({cell.epoch for cell in cells if cell.state == "stopped"})
    hours = sum(map(_hours, cells))
    return {
        "arm": arm.name + (" *" if arm.baseline else ""),
        "seeds": f"{count['done']}/{len(cells)}",
        "state": ", ".join(states),
        "value": "" if arm.is_search else _value(cells),
        "change": ""
        if baseline is None or arm is baseline or arm.is_stage or arm.is_search
        else _change(cells, baseline.cells),
        "stopped at": f"{stopped[0]}–{stopped[-1]}" if len(stopped) > 1 else "".join(map(str, stopped)),
        "left": _time_left(cells, _seconds_per_epoch(cells)) if count["running"] else "",
        "hours": f"{hours:.2g}" if hours else "",
    }


def _value(cells: Sequence[LiveCell]) -> str:
    """Mean and half width at the highest epoch that all its seeds so far have been measured at."""
    begun = [cell.values for cell in cells if cell.values]
    common = set.intersection(*(set(values) for values in begun)) if begun else set()
    if not common:
        return ""
    found = estimate([values[max(common)] for values in begun])
    return f"{found.mean:.4f}" + (f" ±{found.half_width:.4f}" if found.half_width is not None else "")


def _change(cells: Sequence[LiveCell], baseline: Sequence[LiveCell]) -> str:
    """Mean difference over the seeds that both have, at the highest epoch that all of these reached in both."""
    others = {cell.seed: cell.values for cell in baseline if cell.values}
    pairs = [(cell.values, others[cell.seed]) for cell in cells if cell.values and cell.seed in others]
    common = set.intersection(*(set(values) for pair in pairs for values in pair)) if pairs else set()
    if not common:
        return ""
    epoch = max(common)
    found = paired([one[epoch] for one, _ in pairs], [other[epoch] for _, other in pairs])
    return f"{found.mean:+.4f}" + (f" ±{found.half_width:.4f}" if found.half_width is not None else "")


def _hours(cell: LiveCell) -> float:
    return cell.seconds * cell.devices / 3600


def _seconds_per_epoch(cells: Iterable[LiveCell]) -> float | None:
    timed = [(cell.seconds, cell.timed) for cell in cells if cell.timed]
    return sum(seconds for seconds, _ in timed) / sum(epochs for _, epochs in timed) if timed else None


def _time_left(cells: Sequence[LiveCell], seconds_per_epoch: float | None) -> str:
    running = sum(cell.state == "running" for cell in cells)
    left = sum(cell.epochs - cell.epoch for cell in cells if cell.state not in (*FINISHED, "spared"))
    if seconds_per_epoch is None or not running or not left:
        return ""
    seconds = seconds_per_epoch * left / running
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
