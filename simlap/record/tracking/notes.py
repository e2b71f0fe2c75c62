"""Markdown that MLflow shows on top of a run's page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from simlap.record.view import ArmView, CellView, StudyView

ENDED = ("done", "stopped", "failed")
HEADLINES = ("test/probe_top1", "test/knn_top1", "val/probe_top1")


def study_note(study: StudyView, summary: Mapping[str, Any], limit: int) -> str:
    """The report's table where there is a report, else how far each arm is."""
    table = str(summary.get("markdown") or _progress(study)).strip()
    foot = ["Full report with plots: artefact `report/report.html`."] if summary else ["The report comes at the end."]
    foot += [f"Claim: {claim}" for claim in study.claims]
    if study.command:
        foot.append(f"Reproduce: `{study.command}`")
    table, tail = _spaced(table), "\n\n" + "\n\n".join(foot)
    if len(table) + len(tail) <= limit:
        return table + tail
    cut = "\n\n*The table is longer than MLflow allows here; all of it is in the artefact `report/report.md`.*"
    room = limit - len(tail) - len(cut)
    if room < 200:  # the foot itself is too long
        return (table + cut)[:limit]
    return table[:room].rpartition("\n")[0] + cut + tail


def arm_note(study: StudyView, arm: ArmView) -> str:
    """One row per seed; numbers only of those that have ended, so that a growing run does not change the arm's."""
    role = " (baseline)" if arm.is_baseline else " (protected)" if arm.protected else ""
    lines = [
        f"Arm of study `{study.name}`{role}: {', '.join(f'{factor} = {level}' for factor, level in arm.levels.items())}",
        "",
        f"| seed | state | epochs | {study.metric} | {study.report_metric} |",
        "|---|---|---|---|---|",
    ]
    for cell in arm.cells:
        if cell.state in ENDED:
            last = cell.metric_at(study.metric, cell.epoch)
            numbers = f"{cell.epoch} | {_number(last)} | {_number(cell.result.get(study.report_metric))}"
        else:
            numbers = "| |"
        lines.append(f"| {cell.seed} | {cell.state} | {numbers} |")
    return _spaced("\n".join(lines))


def cell_note(cell: CellView) -> str | None:
    """How a run that was done or stopped went, in a line; None for others."""
    if cell.state not in ("done", "stopped"):
        return None
    known = (cell.rows[-1].metrics if cell.rows else {}) | cell.result
    numbers = [f"{name} **{_number(known[name])}**" for name in HEADLINES if name in known]
    if cell.state == "done":
        return f"Done, {cell.epoch} epochs: " + ", ".join(numbers or ["no results"])
    why = f" ({cell.reason})" if cell.reason else ""
    return f"Stopped after epoch {cell.epoch}{why}" + "".join(f", {number}" for number in numbers)


def failure_note(cell: CellView, error: str) -> str:
    """Says what went wrong and where the whole of it is."""
    last = error.strip().splitlines()[-1][:1000] if error.strip() else error
    return f"**Failed after epoch {cell.epoch}.**\n\n```\n{last}\n```\n\nWhole message: artefact `error.txt`."


def _spaced(markdown: str) -> str:
    """Room between the columns of tables: MLflow's page draws them without any."""
    lines = markdown.split("\n")
    return "\n".join(
        line.replace(" |", " &emsp;|") if line.startswith("|") and set(line) - set("|-: ") else line for line in lines
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _progress(study: StudyView) -> str:
    lines = ["| arm | seeds done | epochs | stopped | failed |", "|---|---|---|---|---|"]
    for arm in study.arms:
        states = Counter(cell.state for cell in arm.cells)
        epochs = sum(cell.epoch for cell in arm.cells)
        name = f"**{arm.name}** (baseline)" if arm.is_baseline else arm.name
        lines.append(
            f"| {name} | {states['done']}/{len(arm.cells)} | {epochs}/{len(arm.cells) * study.epochs} "
            f"| {states['stopped'] or ''} | {states['failed'] or ''} |"
        )
    return "\n".join(lines)
