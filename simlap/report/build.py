"""From a study's view to the report, in memory and on storage."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape as rich_escape
from rich.padding import Padding

from simlap.record.view import StudyView
from simlap.report.answer import Notice, Sentence, notices, race_sentences, sentences
from simlap.report.claims import Judged, counts_text, judge
from simlap.report.compare import Comparison, Effect, compare_to_baseline, simple_effects
from simlap.report.detail import Details, details
from simlap.report.detail_tables import detail_tables, summary_details
from simlap.report.html import html_page
from simlap.report.race import race_comparisons, race_rows, race_summary
from simlap.report.replayed import badge, badge_text
from simlap.report.tables import ArmRow, arm_rows, latex_table, markdown_table, rich_table, summary
from simlap.report.text_table import TextTable
from simlap.report.tuned import TITLE, summary_tuned, tuned_table
from simlap.report.verdicts import race_lead
from simlap.storage import Storage

Format = Literal["html", "md", "latex"]
_CLAIM_MARKS = {"holds": "better", "fails": "worse", "undecided": "open"}
_MARKS = {"better": "[green]▲[/]", "worse": "[red]▼[/]", "same": "[dim]=[/]", "open": "[dim]?[/]"}


@dataclass(frozen=True)
class Report:
    """Everything that is said about a study, computed once; the renderings only lay it out."""

    study: StudyView
    rows: list[ArmRow]
    comparisons: dict[str, Comparison]
    """Every other arm with the baseline, by arm name."""
    effects: list[Effect]
    sentences: list[Sentence]
    notices: list[Notice]
    details: Details | None
    """What stands beside the tests; None for a race."""
    judged: list[Judged]
    """The study's claims."""

    @property
    def tables(self) -> list[TextTable]:
        """Beside the table of arms."""
        found = [tuned_table(self.study)] if self.study.searches else []
        own = detail_tables(self.study, self.details) if self.details is not None else []
        return [table for table in found if table is not None] + own


def build(study: StudyView) -> Report:
    if (race := study.race) is not None:
        comparisons = race_comparisons(study, race)
        rows = race_rows(study, race, arm_rows(study, comparisons))
        return Report(
            study, rows, comparisons, [], race_sentences(study, race), notices(study), None, judge(study)
        )  # fmt: skip
    comparisons, effects = compare_to_baseline(study), simple_effects(study)
    return Report(
        study, arm_rows(study, comparisons), comparisons, effects, sentences(study, effects),
        notices(study, comparisons), details(study, comparisons), judge(study),
    )  # fmt: skip


def render(study: StudyView | Report, format: Format) -> str:
    """The report as text in one format."""
    report = study if isinstance(study, Report) else build(study)
    if format == "html":
        return html_page(report)
    if format == "latex":
        return latex_table(report.study, report.rows)
    return _markdown(report)


def write_report(study: StudyView, storage: Storage, folder: str = "report") -> list[str]:
    """Write `report.html`, `report.md`, `report.tex` and `summary.json` to `folder` of `storage`; returns their paths there."""
    report = build(study)
    texts = {
        "report.html": render(report, "html"),
        "report.md": render(report, "md"),
        "report.tex": render(report, "latex"),
        "summary.json": json.dumps(summary_of(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    paths = []
    for name, text in texts.items():
        path = f"{folder}/{name}" if folder else name
        storage.write(path, text.encode())
        paths.append(path)
    return paths


def summary_of(report: Report) -> dict[str, Any]:
    """What `summary.json` holds."""
    found = summary(report.study, report.rows, markdown_table(report.study, report.rows))
    if report.study.race is not None:
        found["race"] = race_summary(report.study.race)
    if tuned := summary_tuned(report.study):
        found["tuned"] = tuned
    if report.details is not None:
        found["details"] = summary_details(report.study, report.details)
    if report.judged:
        found["claims"] = [vars(one) for one in report.judged]
    if (replay := report.study.replay) is not None:
        found["replay"] = {**asdict(replay), "text": badge_text(replay)}
    return found


def print_report(study: StudyView, console: Console) -> None:
    """Table, answer and warnings in the terminal."""
    report = build(study)
    for table in report.tables:  # first: what is read most stands last
        console.print(table.rich(caption=table.title != TITLE))
    console.print(rich_table(report.study, report.rows))
    if report.sentences:
        console.print("[bold]Answer[/]")
    for sentence in report.sentences:
        console.print(
            Padding(f"{_MARKS[sentence.verdict]} {rich_escape(sentence.text)}", (0, 0, 0, 1)), highlight=False
        )
    if report.judged:
        console.print(f"[bold]Claims[/]: {counts_text(report.judged)}", highlight=False)
    for one in report.judged:
        mark = _MARKS[_CLAIM_MARKS[one.verdict]]
        text = rich_escape(f"{one.verdict}: {one.claim}: {one.text}")
        console.print(Padding(f"{mark} {text}", (0, 0, 0, 1)), highlight=False)
    for notice in report.notices:
        style = "yellow" if notice.level == "warning" else "dim"
        last = notice.detail.strip().splitlines()[-1:] if notice.kind == "failure" else []
        text = " ".join([notice.text, *last])
        console.print(f"[{style}]{notice.level}:[/] {rich_escape(text)}", highlight=False)


def _markdown(report: Report) -> str:
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
