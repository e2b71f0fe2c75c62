"""Numbers, metric names and states in the words the report uses."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from simlap.record.view import PAUSED, ArmView, CellState, StudyView
from simlap.report.compare import Comparison, planned_cells

_SPLITS = {"val": "validation", "test": "test", "train": "training"}
_STATES: dict[CellState, str] = {
    "failed": "failed",
    "running": "running",
    "interrupted": "interrupted",
    "new": "not started",
}
TEST_DECISIONS = "There is no validation split: decisions were made on the test set."


@dataclass(frozen=True)
class Unit:
    """How the values of a metric are shown."""

    scale: float
    suffix: str
    """Of a difference in a sentence: ` points` or nothing."""
    percent: bool

    def number(self, value: float, decimals: int, *, sign: bool = False) -> str:
        text = f"{value * self.scale:{'+' if sign else ''}.{decimals}f}"
        return text.replace("-", "").replace("+", "") if float(text) == 0 else text


def unit_of(metric: str) -> Unit:
    """`*_top1` metrics are fractions and shown in percent; others as they are."""
    return Unit(100.0, " points", True) if metric.endswith("_top1") else Unit(1.0, "", False)


def same_quantity(metric: str, other: str) -> bool:
    """Whether a margin in the units of one means the same in the other's."""
    return metric.rpartition("/")[2] == other.rpartition("/")[2] or (unit_of(metric).percent and unit_of(other).percent)


def amount(unit: Unit, value: float) -> str:
    """`1 point`, `0.5 points`, `0.02`: a number that somebody wrote."""
    text = f"{value * unit.scale:g}{unit.suffix}"
    return text.removesuffix("s") if text == "1 points" else text


def decimals_for(unit: Unit, noise: float | None, value: float = 1.0) -> int:
    """Decimals that show the first digit of the noise (percent: at least one decimal), four digits without noise."""
    if noise is not None and noise > 0:
        return min(6, max(1 if unit.percent else 0, math.ceil(-math.log10(noise * unit.scale)) + (not unit.percent)))
    if unit.percent:
        return 1
    return 3 if value == 0 else min(6, max(0, 3 - math.floor(math.log10(abs(value)))))


def p_text(p: float | None, *, bare: bool = False) -> str:
    """`p < 0.001`, `p = 0.012`; `bare` leaves out `p` and the equals sign. Empty where there is none."""
    if p is None:
        return ""
    small = p < 0.001
    number = "0.001" if small else f"{p:.3f}" if p < 0.9995 else "1"
    return ("< " if small else "") + number if bare else f"p {'<' if small else '='} {number}"


def metric_title(metric: str) -> str:
    """`val/probe_top1` -> `validation probe top-1 (%)`."""
    part, _, rest = metric.rpartition("/")
    name = f"{_SPLITS.get(part, part)} {rest}".strip().replace("/", " ").replace("_top1", " top-1").replace("_", " ")
    return f"{name} (%)" if unit_of(metric).percent else name


def split_word(metric: str) -> str:
    """The part of the data a metric is measured on."""
    part = metric.split("/")[0]
    return _SPLITS.get(part, part)


def place(comparison: Comparison) -> str:
    """Where a comparison was made: `test`, `val @ epoch 5`, or empty."""
    if comparison.epoch is None:
        return ""
    part = comparison.metric.split("/")[0]
    if comparison.best:
        return f"{part} best ≤ epoch {comparison.epoch}"
    return part if comparison.final else f"{part} @ epoch {comparison.epoch}"


def rule_text(study: StudyView) -> str:
    """Where arms are compared, in a sentence; of a race its own looks say so."""
    declared = "as the study file declares"
    if isinstance(study.compare, int):
        return f"All arms are compared on {study.metric} at epoch {study.compare}, {declared}."
    if study.compare == "last":
        return f"Only arms that finished with every seed are compared, at the end, {declared}."
    if study.compare == "best_so_far":
        side = "high" if study.mode == "max" else "low"
        return (
            f"Arms are compared by every run's best {study.metric} up to the highest epoch all planned seeds of both reached, "
            f"{declared}; the best of several noisy values is too {side}."
        )
    return (
        f"Arms that did not finish with every seed are compared on {study.metric} at the highest epoch all planned seeds of both "
        "reached."
    )


def levels_text(levels: dict[str, str]) -> str:
    return ", ".join(f"{factor}={level}" for factor, level in levels.items())


def span(epochs: list[int]) -> str:
    """`5` or `5–8`."""
    low, high = min(epochs), max(epochs)
    return str(low) if low == high else f"{low}–{high}"


def arm_state(study: StudyView, arm: ArmView) -> tuple[str, str]:
    """The state of an arm as one word (for a chip) and in full: `stopped`, `stopped at 5–8, 1 failed`."""
    cells = planned_cells(study, arm)
    counts: Counter[CellState] = Counter(cell.state if cell is not None else "new" for cell in cells)
    if counts["done"] == len(cells):
        return "done", "done"
    parts: list[str] = []
    if counts["stopped"]:
        parts.append(f"stopped at {span([c.epoch for c in cells if c is not None and c.state == 'stopped'])}")
    paused = sum(cell is not None and cell.state == "interrupted" and cell.reason == PAUSED for cell in cells)
    shown = counts - Counter({"interrupted": paused})
    parts += [f"{shown[state]} {word}" for state, word in _STATES.items() if shown[state]]
    parts += [f"{paused} paused"] * bool(paused)
    if counts["new"] == len(cells):
        return "new", "not started"
    order: list[CellState] = ["failed", "running", "interrupted", "stopped", "new"]
    worst = next(state for state in order if counts[state])
    return worst, ", ".join(parts)
