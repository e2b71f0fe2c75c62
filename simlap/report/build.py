"""From a study's view to the report, in memory and on storage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape as rich_escape
from rich.padding import Padding

from simlap.record.view import StudyView
from simlap.report.answer import Notice, Sentence, notices, race_sentences, sentences
from simlap.report.compare import Comparison, Effect, compare_to_baseline, simple_effects
from simlap.report.html import html_page
from simlap.report.race import race_comparisons, race_rows, race_summary
from simlap.report.tables import ArmRow, arm_rows, latex_table, markdown_table, rich_table, summary
from simlap.report.tuned import markdown_tuned, rich_tuned, summary_tuned
from simlap.report.verdicts import race_lead
from simlap.storage import Storage

Format = Literal["html", "md", "latex"]
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


def build(study: StudyView) -> Report:
    if (race := study.race) is not None:
        comparisons = race_comparisons(study, race)
        rows = race_rows(study, race, arm_rows(study, comparisons))
        return Report(study, rows, comparisons, [], race_sentences(study, race), notices(study))
    comparisons, effects = compare_to_baseline(study), simple_effects(study)
    return Report(study, arm_rows(study, comparisons), comparisons, effects, sentences(study, effects), notices(study))


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
    return found


def print_report(study: StudyView, console: Console) -> None:
    """Table, answer and warnings in the terminal."""
    report = build(study)
    console.print(rich_table(report.study, report.rows))
    if (tuned := rich_tuned(study)) is not None:
        console.print(tuned)
    if report.sentences:
        console.print("[bold]Answer[/]")
    for sentence in report.sentences:
        console.print(
            Padding(f"{_MARKS[sentence.verdict]} {rich_escape(sentence.text)}", (0, 0, 0, 1)), highlight=False
        )
    for notice in report.notices:
        style = "yellow" if notice.level == "warning" else "dim"
        last = notice.detail.strip().splitlines()[-1:] if notice.kind == "failure" else []
        text = " ".join([notice.text, *last])
        console.print(f"[{style}]{notice.level}:[/] {rich_escape(text)}", highlight=False)


def _markdown(report: Report) -> str:
    study = report.study
    parts = [f"# {study.name}", "", "## Answer", ""]
    parts += [f"- {sentence.text}" for sentence in report.sentences] or ["There is nothing to compare."]
    adjusted = "p-values of the answer are Holm-adjusted over all its effects; intervals are not adjusted."
    parts += ["", adjusted if study.race is None else race_lead(study, study.race), ""]
    parts += ["## Arms", "", markdown_table(study, report.rows)]
    parts += markdown_tuned(study)
    if report.notices:
        parts += ["## Before you rely on it", ""]
        for notice in report.notices:
            parts.append(f"- **{notice.level}**: {notice.text}")
            parts += [f"      {line}" for line in notice.detail.splitlines()]
        parts.append("")
    if study.command:
        parts += ["## How to reproduce", "", "```sh", study.command, "```", ""]
    return "\n".join(parts)
