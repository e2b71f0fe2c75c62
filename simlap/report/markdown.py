"""The report as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simlap.report.replayed import badge, badge_text
from simlap.report.tables import markdown_table
from simlap.report.verdicts import race_lead

if TYPE_CHECKING:
    from simlap.report.build import Report


def markdown(report: Report) -> str:
    """The whole report."""
    study = report.study
    parts = [f"# {study.name}", ""]
    if study.replay is not None:
        parts += [f"**{badge(study.replay)}**: {badge_text(study.replay)}", ""]
    parts += ["## Answer", ""]
    parts += [f"- {sentence.text}" for sentence in report.sentences] or ["There is nothing to compare."]
    adjusted = "p-values of the answer are Holm-adjusted over all its effects; intervals are not adjusted."
    parts += ["", adjusted if study.race is None else race_lead(study, study.race), ""]
    parts += ["## Arms", "", markdown_table(study, report.rows)]
    if report.judged:
        parts += ["## Claims", "", *(f"- **{one.verdict}**: `{one.claim}`: {one.text}" for one in report.judged), ""]
    for table in report.tables:
        parts += table.markdown()
    if report.notices:
        parts += ["## Before you rely on it", ""]
        for notice in report.notices:
            parts.append(f"- **{notice.level}**: {notice.text}")
            parts += [f"      {line}" for line in notice.detail.splitlines()]
        parts.append("")
    if study.command:
        parts += ["## How to reproduce", "", "```sh", study.command, "```", ""]
    return "\n".join(parts)
