"""Markdown that MLflow shows on top of a run's page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from simlap.record.view import CellView, StudyView


def study_note(study: StudyView, summary: Mapping[str, Any], limit: int) -> str:
    """The report's table where there is a report, else how far each arm is."""
    table = str(summary.get("markdown") or _progress(study)).strip()
    foot = ["Full report with plots: artefact `report/report.html`."] if summary else ["The report comes at the end."]
    foot += [f"Claim: {claim}" for claim in study.claims]
    if study.command:
        foot.append(f"Reproduce: `{study.command}`")
    tail = "\n\n" + "\n\n".join(foot)
    if len(table) + len(tail) <= limit:
        return table + tail
    cut = "\n\n*The table is longer than MLflow allows here; all of it is in the artefact `report/report.md`.*"
    room = limit - len(tail) - len(cut)
    if room < 200:  # the foot itself is too long
        return (table + cut)[:limit]
    return table[:room].rpartition("\n")[0] + cut + tail


def failure_note(cell: CellView, error: str) -> str:
    """Says what went wrong and where the whole of it is."""
    last = error.strip().splitlines()[-1][:1000] if error.strip() else error
    return f"**Failed after epoch {cell.epoch}.**\n\n```\n{last}\n```\n\nWhole message: artefact `error.txt`."


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
