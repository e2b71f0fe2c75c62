"""The report as one self-contained HTML page: offline, light and dark, for desktop, phone and paper.

It reads from top to bottom: the answer, what it rests on, and how it was come by. Nothing that matters needs scripts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from simlap.report.detail_tables import FACTORS, IMPORTANCE
from simlap.report.gate_study import gates_section
from simlap.report.page import document
from simlap.report.sections.arms import arms
from simlap.report.sections.cost import cost
from simlap.report.sections.factors import interaction
from simlap.report.sections.plots import collapse, curves, effects, forest, gates
from simlap.report.sections.record import failures, reproduce, stopped
from simlap.report.sections.top import answer, masthead, notices
from simlap.report.tuned import TITLE as TUNED

if TYPE_CHECKING:
    from simlap.report.build import Report


def html_page(report: Report) -> str:
    """The whole page."""
    study = report.study
    plots: dict[str, go.Figure] = {}
    body = "".join(
        [
            masthead(study),
            answer(report),
            notices(report.notices),
            arms(study, report.rows),
            _tables(report, TUNED),
            forest(report, plots),
            _tables(report, None),
            curves(study, plots),
            effects(report, plots),
            _tables(report, FACTORS, IMPORTANCE),
            interaction(report, plots),
            cost(report, plots),
            stopped(report),
            collapse(study, plots),
            gates(study, plots),
            gates_section(study),
            failures(study),
            reproduce(study),
        ]
    )
    return document(f"{study.name} · simlap report", body, plots)


def figures_of(report: Report) -> dict[str, go.Figure]:
    """The page's figures by name, in its order; each with a title and a description (`simlap.report.page.described`)."""
    plots: dict[str, go.Figure] = {}
    forest(report, plots)
    curves(report.study, plots)
    effects(report, plots)
    interaction(report, plots)
    cost(report, plots)
    collapse(report.study, plots)
    gates(report.study, plots)
    return plots


def _tables(report: Report, *titles: str | None) -> str:
    """The tables of these titles; None: all that have a place of their own nowhere else."""
    placed = (TUNED, FACTORS, IMPORTANCE)
    return "".join(
        table.html()
        for table in report.tables
        if table.title in titles or (None in titles and table.title not in placed)
    )
