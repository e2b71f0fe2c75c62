"""The report in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape as rich_escape
from rich.padding import Padding

from simlap.record.view import StudyView
from simlap.report.build import Report, built
from simlap.report.claims import counts_text
from simlap.report.replayed import badge, badge_text
from simlap.report.tables import rich_table
from simlap.report.tuned import TITLE

_CLAIM_MARKS = {"holds": "better", "fails": "worse", "undecided": "open"}
_MARKS = {"better": "[green]▲[/]", "worse": "[red]▼[/]", "same": "[dim]=[/]", "open": "[dim]?[/]"}


def print_report(study: StudyView | Report, console: Console) -> None:
    """Table, answer and warnings."""
    report = built(study)
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
    if (replay := report.study.replay) is not None:
        style = "green" if replay.verdict == "equal" else "red"
        console.print(f"[{style}]{badge(replay)}[/]: {rich_escape(badge_text(replay))}", highlight=False)
    for notice in report.notices:
        style = "yellow" if notice.level == "warning" else "dim"
        last = notice.detail.strip().splitlines()[-1:] if notice.kind == "failure" else []
        text = " ".join([notice.text, *last])
        console.print(f"[{style}]{notice.level}:[/] {rich_escape(text)}", highlight=False)
