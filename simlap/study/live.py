"""How far a study is, as a table: an arm a line, as much of it as the console is wide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from simlap.report.stats import estimate, paired
from simlap.study.budget import Use

FAILURES = 3
"""So many are shown: the newest, those that are not tried again before others."""
FINISHED = ("done", "stopped", "failed")
_NARROWEST = 24
"""Columns that an arm's name gets, before others are left out."""
_GAP = 2
_STANDINGS = ("running", "failed", "done", "stopped", "decided", "interrupted", "waiting")
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
    changed: int = 0
    """Greater the later it was that something happened to it."""


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
    budget: Callable[[], Sequence[Use]] = lambda: ()
    """Asked for what of the study's limits is used now."""
    race: bool = False
    """Whether some of the cells may never be needed."""
    _changes: int = 0

    def touch(self, cell: LiveCell) -> None:
        """Something has happened to a cell: where not all arms can be shown, its arm is."""
        self._changes += 1
        cell.changed = self._changes

    @property
    def ended(self) -> tuple[int, int]:
        """How many cells have ended, and of how many."""
        states = [cell.state for arm in self.arms for cell in arm.cells if cell.state != "spared"]
        return sum(state in FINISHED for state in states), len(states)

    def render(self, width: int, height: int | None = None, *, failures: bool = True) -> RenderableType:
        """The table, the totals, the budget and the newest failures.

        Args:
            width: columns there are.
            height: lines there are (default: any number). Where they do not suffice, what is below the table stays, and of the
                arms the baseline, those that run, those that failed and those that changed last; the others are counted.
            failures: whether they are wanted.
        """
        below = [Text(line, no_wrap=True, overflow="ellipsis") for line in self.summary()]
        below = [*below, *(self._failures() if failures else [])][:height]
        shown, hidden = self._divided(None if height is None else height - len(below))
        parts: list[RenderableType] = [self._table(shown, width)] if shown else []
        if hidden and (height is None or len(below) < height):
            parts.append(Text(_counted(hidden, more=bool(shown)), style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*parts, *below)

    def _divided(self, lines: int | None) -> tuple[list[LiveArm], list[LiveArm]]:
        """The arms that are shown in so many lines, the heading among them, and those that are only counted."""
        if lines is None or len(self.arms) < lines:
            return self.arms, []
        urgent = sorted(range(len(self.arms)), key=lambda i: _urgency(self.arms[i]))
        shown = {*urgent[: max(0, lines - 2)]}  # the heading takes a line, and so does what is counted
        return (
            [arm for i, arm in enumerate(self.arms) if i in shown],
            [arm for i, arm in enumerate(self.arms) if i not in shown],
        )

    def _table(self, arms: Sequence[LiveArm], width: int) -> Table:
        baseline = next((arm for arm in self.arms if arm.baseline), None)
        rows = [_row(arm, baseline) for arm in arms]
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
        return table

    def _failures(self) -> list[Text]:
        """The newest ones, in their order."""
        newest = sorted(range(len(self.failures)), key=lambda i: (not self.failures[i].again, i))[-FAILURES:]
        return [_failure(self.failures[i]) for i in sorted(newest)]

    def summary(self) -> list[str]:
        """The totals, and the budget where there is one."""
        used = ", ".join(map(str, self.budget()))
        return [self.totals(), *([f"budget: {used}"] if used else [])]

    def totals(self) -> str:
        """In a line."""
        cells = [cell for arm in self.arms for cell in arm.cells]
        counts = {state: sum(cell.state == state for cell in cells) for state in (*FINISHED, "running")}
        most = "at most " if self.race else ""
        planned = sum(cell.state != "spared" for cell in cells)
        parts = [f"{counts['done'] + counts['stopped']}/{most}{planned} cells"]
        parts += [f"{counts[state]} {state}" for state in ("running", "stopped", "failed") if counts[state]]
        parts.append(f"{_short(sum(map(_hours, cells)))} device-hours")
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
        "hours": _short(hours) if hours else "",
    }


def _urgency(arm: LiveArm) -> tuple[int, int]:
    """Least for what is to be seen first."""
    states = {cell.state for cell in arm.cells}
    rank = 0 if arm.baseline else 1 if "running" in states else 2 if "failed" in states else 3
    return rank, -max((cell.changed for cell in arm.cells), default=0)


def _counted(arms: Sequence[LiveArm], *, more: bool) -> str:
    """Arms that are not shown, in a line."""
    counts = Counter(map(_standing, arms))
    told = ", ".join(f"{counts[word]} {word}" for word in _STANDINGS if counts[word])
    return f"… {len(arms)}{' more' if more else ''}: {told}"


def _standing(arm: LiveArm) -> str:
    """How an arm stands, in a word of `_STANDINGS`."""
    states = {cell.state for cell in arm.cells}
    if found := [word for word in ("running", "failed") if word in states]:
        return found[0]
    if arm.verdict:
        return "decided"
    if states <= {"done", "stopped", "spared"}:
        return "stopped" if "stopped" in states else "done"
    return "interrupted" if "interrupted" in states else "waiting"


def _failure(failure: Failure) -> Text:
    what = f"{failure.kind}, tried again" if failure.again else failure.kind
    text = f"{failure.where} ({failure.cell_id}) {what}: {failure.reason}"
    style = "yellow" if failure.again else "red"
    return Text(" ".join(text.split()), style=style, no_wrap=True, overflow="ellipsis")


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


def _short(hours: float) -> str:
    return f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"


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
