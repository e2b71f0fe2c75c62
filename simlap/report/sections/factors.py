"""The heat maps of pairs of factors."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from simlap.report.interaction import heat_map, interactions, p_note, where_text
from simlap.report.page import numbers, plot_box, section
from simlap.report.words import unit_of

if TYPE_CHECKING:
    from simlap.report.build import Report


def interaction(report: Report, plots: dict[str, go.Figure]) -> str:
    found = interactions(report.study, report.details)
    if found is None:
        return ""
    parts = []
    for i, pair in enumerate(found.pairs):
        name = f"interaction-{i}"
        plots[name] = heat_map(report.study, found, pair)
        texts = plots[name].data[0].text
        rows = [[level, *row] for level, row in zip(pair.rows, texts, strict=True)]
        note = f" · {p_note(pair)}" if pair.p_value is not None else ""
        suffix = " (%)" if unit_of(found.metric).percent else ""
        parts.append(
            f"<div><h3>{escape(' × '.join(pair.factors) + note)}</h3>{plot_box(name, plots)}"
            f"{numbers([f'{pair.factors[0]}{suffix}', *pair.columns], rows)}</div>"
        )
    wide = any(len(pair.columns) > 6 for pair in found.pairs)
    content = f'<div class="{"maps" if wide or len(parts) == 1 else "small"}">{"".join(parts)}</div>'
    return section("Combinations of levels", where_text(report.study, found), content)
