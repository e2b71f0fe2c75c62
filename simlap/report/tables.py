"""The table of arms: rows built once, then rendered for the terminal, Markdown and `summary.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape as rich_escape
from rich.table import Table

from simlap.record.view import StudyView
from simlap.report.compare import Comparison, final_values, planned_cells
from simlap.report.stats import Estimate, estimate
from simlap.report.verdicts import race_caption
from simlap.report.words import (
    TEST_DECISIONS,
    arm_state,
    decimals_for,
    metric_title,
    p_text,
    place,
    rule_text,
    unit_of,
)

SCHEMA_VERSION = 1
_STYLES = {
    "done": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "stopped": "yellow",
    "failed": "red",
    "new": "dim",
    # of a race
    "better": "green",
    "worse": "red",
    "same": "cyan",
    "open": "yellow",
}


@dataclass(frozen=True)
class ArmRow:
    """One arm, in numbers and in the texts every rendering shows."""

    arm: str
    is_baseline: bool
    done: int
    planned: int
    state: str
    """One word, for a chip."""
    status: str
    """In full: `stopped at 5–8, 1 failed`."""
    final: Estimate | None
    """Report metric over all planned seeds; None unless every one is done."""
    comparison: Comparison | None
    """With the baseline; None for the baseline itself."""
    final_text: str
    """`96.9 ± 0.8`, or empty."""
    difference_text: str
    """`-7.1 [-8.0, -6.2]`, `baseline`, or empty."""
    p: str
    """Adjusted: `< 0.001`, `0.012`, or empty."""
    at: str
    """Where it was compared: `test`, `val @ epoch 5`, or empty."""


def arm_rows(study: StudyView, comparisons: Mapping[str, Comparison]) -> list[ArmRow]:
    """Rows in the order of the study. Decimals are the same all down a column."""
    finals = {arm.name: estimate(values) for arm in study.arms if (values := final_values(study, arm)) is not None}
    unit = unit_of(study.report_metric)
    final_decimals = decimals_for(
        unit, _noise([e.half_width for e in finals.values()]), max((abs(e.mean) for e in finals.values()), default=1.0)
    )
    tests = [c.paired for c in comparisons.values() if c.paired is not None]
    difference_noise = _noise([t.half_width for t in tests])
    rows: list[ArmRow] = []
    for arm in study.arms:
        cells = planned_cells(study, arm)
        state, status = arm_state(study, arm)
        final, comparison = finals.get(arm.name), comparisons.get(arm.name)
        final_text = difference_text = ""
        if final is not None:
            final_text = unit.number(final.mean, final_decimals)
            if final.half_width is not None:
                final_text += f" ± {unit.number(final.half_width, final_decimals)}"
        test = comparison.paired if comparison is not None else None
        if comparison is not None and test is not None:
            its_unit = unit_of(comparison.metric)
            decimals = decimals_for(its_unit, difference_noise, test.mean)
            difference_text = its_unit.number(test.mean, decimals, sign=True)
            if test.low is not None and test.high is not None:
                low, high = (
                    its_unit.number(test.low, decimals, sign=True),
                    its_unit.number(test.high, decimals, sign=True),
                )
                difference_text += f" [{low}, {high}]"
        rows.append(
            ArmRow(
                arm=arm.name,
                is_baseline=arm.is_baseline,
                done=sum(cell is not None and cell.state == "done" for cell in cells),
                planned=len(cells),
                state=state,
                status=status,
                final=final,
                comparison=comparison,
                final_text=final_text,
                difference_text="baseline" if arm.is_baseline else difference_text,
                p=p_text(test.p_adjusted, bare=True) if test is not None else "",
                at=place(comparison) if comparison is not None else "",
            )
        )
    return rows


def caption(study: StudyView) -> str:
    """What the columns mean, under every table."""
    if study.race is not None:
        return race_caption(study, study.race)
    seeds = f"{len(study.seeds)} seeds" if len(study.seeds) != 1 else "1 seed"
    text = (
        f"{metric_title(study.report_metric).capitalize()} at epoch {study.epochs}: mean ± half-width of the 95% t interval "
        f"over {seeds}. Difference to the baseline: paired by seed, with 95% interval; p: two-sided paired t test, "
        f"Holm-adjusted over the arms. {rule_text(study)}"
    )
    return text if study.validation else f"{text} {TEST_DECISIONS}"


def headers(study: StudyView) -> list[str]:
    points = " (points)" if unit_of(study.report_metric).percent else ""
    final = metric_title(study.report_metric)
    status = "Status" if study.race is None else "Verdict"
    return ["Arm", "Seeds", status, final[:1].upper() + final[1:], f"Difference{points}", "p", "Compared at"]


def cells_of(row: ArmRow) -> list[str]:
    return [row.arm, f"{row.done}/{row.planned}", row.status, row.final_text, row.difference_text, row.p, row.at]


def rich_table(study: StudyView, rows: Sequence[ArmRow]) -> Table:
    """For the terminal: the status stands where a finished arm has its metric, so that it fits 80 columns."""
    head = headers(study)
    notes = "± and [ ]: 95% t intervals over seeds · p: paired by seed, Holm-adjusted"
    if (race := study.race) is not None:
        notes = f"[ ] and p hold over all looks and arms ({100 * (1 - race.alpha):g}%); ±: 95% t interval, not tested"
    elif study.compare != "common":
        notes += f"\n{rule_text(study)}"
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption_justify="left", caption_style="dim",
        caption=notes if study.validation else f"{notes}\n{TEST_DECISIONS}",
    )  # fmt: skip
    table.add_column(head[0], overflow="fold")
    table.add_column(head[1], justify="right", no_wrap=True)
    table.add_column(head[3].replace(" ", "\n", 1), justify="right")
    table.add_column(head[4].replace(" ", "\n", 1), justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("at", no_wrap=True)
    for row in rows:
        style = _STYLES[row.state]
        shown = row.final_text if row.state == "done" and row.final_text else f"[{style}]{rich_escape(row.status)}[/]"
        if race is not None and row.final_text:
            shown = row.final_text if row.status == "done" else f"{row.final_text}\n{shown}"
        difference = "[dim]baseline[/]" if row.is_baseline else rich_escape(row.difference_text) or "[dim]–[/]"
        at = row.at.replace("epoch ", "").partition(",")[0]
        seeds = f"[{style}]{row.done}/{row.planned}[/]"
        table.add_row(rich_escape(row.arm.replace(",", ", ")), seeds, shown, difference, row.p, at)
    return table


def markdown_table(study: StudyView, rows: Sequence[ArmRow]) -> str:
    lines = ["| " + " | ".join(map(_markdown, headers(study))) + " |", "|:--|--:|:--|--:|--:|--:|:--|"]
    lines += ["| " + " | ".join(_markdown(cell) or "–" for cell in cells_of(row)) + " |" for row in rows]
    return "\n".join([*lines, "", f"*{_markdown(caption(study))}*", ""])


def summary(study: StudyView, rows: Sequence[ArmRow], markdown: str) -> dict[str, Any]:
    """The numbers for machines. `arms` holds the report metric only; `comparisons` says where each one was made."""
    arms: dict[str, dict[str, float | int]] = {}
    comparisons: dict[str, dict[str, Any]] = {}
    for row in rows:
        final, comparison = row.final, row.comparison
        numbers: dict[str, float | int | None] = {"n": row.done}
        if final is not None:
            numbers |= {"mean": final.mean, "std": final.std, "ci_low": final.low, "ci_high": final.high}
        if comparison is not None and comparison.paired is not None:
            test = comparison.paired
            shared: dict[str, float | None] = {
                "difference": test.mean,
                "difference_ci_low": test.low,
                "difference_ci_high": test.high,
                "p_value": test.p_value,
                "p_adjusted": test.p_adjusted,
            }
            place_of = {"metric": comparison.metric, "epoch": comparison.epoch, "final": comparison.final, "n": test.n}
            comparisons[row.arm] = place_of | _present(shared)
            if comparison.final:
                numbers |= shared
        arms[row.arm] = _present(numbers)
    found: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "study": study.name,
        "metric": study.report_metric,
        "compare": {"epoch": study.compare} if isinstance(study.compare, int) else study.compare,
        "arms": arms,
        "comparisons": comparisons,
        "states": {row.arm: row.status for row in rows},
        "markdown": markdown,
    }
    return found if study.validation else {**found, "note": TEST_DECISIONS}


def _markdown(text: str) -> str:
    escaped = re.sub(r"([\\|`*_<>\[\]])", r"\\\1", text)
    return escaped.replace("\n", " ")


def _noise(widths: Sequence[float | None]) -> float | None:
    """A typical half-width of a column."""
    positive = [width for width in widths if width is not None and width > 0]
    return median(positive) if positive else None


def _present(values: Mapping[str, float | int | None]) -> dict[str, float | int]:
    return {name: value for name, value in values.items() if value is not None}
