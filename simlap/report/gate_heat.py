"""The gates of some class pairs as a heat map: a row per pair, a column per dimension."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from simlap.report.figures import dress, plain_text
from simlap.report.gate_figures import GateData
from simlap.report.page import plot_box, section

_TITLES = {
    "named": "The pairs that were asked for",
    "closest": "Closest pairs",
    "farthest": "Farthest pairs",
    "same class": "A class with itself",
}
_ROW, _TITLE, _MAX_NAME = 22, 34, 11
MAX_ROWS = 60


def heat_section(data: GateData, plots: dict[str, go.Figure], of: str = "") -> str:
    """Empty where the artefact has no gates of pairs (those of older versions). Adds to `plots`.

    Args:
        data: of the page.
        plots: figures of the page.
        of: the run whose gates these are, on a page of several.
    """
    heat = data.pair_gates
    if heat is None:
        return ""
    plots["pairs"] = heat_figure(data, heat)
    shown, every = len(heat["dimensions"]), heat["of"]
    which = "All" if shown == every else f"The {shown} dimensions that differ most over these pairs, of"
    text = (
        f"{which} {every} dimensions, a column each; similar columns side by side. Bright: open. Columns that are bright in some "
        "rows only are what the filter chooses by; a column that is the same in all rows tells nothing apart."
    )
    if of:
        text = f"{of}: dimensions of different seeds have nothing to do with each other. {text}"
    if len(heat["pairs"]) > MAX_ROWS:
        text += f" The first {MAX_ROWS} of {len(heat['pairs'])} pairs."
    return section("Gates of single pairs", text, plot_box("pairs", plots))


def heat_figure(data: GateData, heat: dict[str, Any]) -> go.Figure:
    """Panels by why a pair is shown."""
    rows = list(zip(heat["pairs"], heat["gates"], strict=True))[:MAX_ROWS]
    kinds = [kind for kind in _TITLES if any(pair[2] == kind for pair, _ in rows)]
    counts = [sum(pair[2] == kind for pair, _ in rows) for kind in kinds]
    height = _ROW * sum(counts) + _TITLE * len(kinds) + 20
    figure = make_subplots(
        rows=len(kinds), cols=1, shared_xaxes=True, row_heights=counts, subplot_titles=[_TITLES[kind] for kind in kinds],
        vertical_spacing=min(_TITLE / height, 1 / max(1, len(kinds))) if len(kinds) > 1 else 0,
    )  # fmt: skip
    columns = [str(dimension) for dimension in heat["dimensions"]]
    for place, kind in enumerate(kinds, start=1):
        part = [(pair, gates) for pair, gates in rows if pair[2] == kind]
        labels = [_pair_name(data, a, b, _MAX_NAME) for (a, b, _), _ in part]
        figure.add_trace(
            go.Heatmap(
                z=[gates for _, gates in part], x=columns, y=list(range(len(part))), zmin=0, zmax=1,
                colorscale="Viridis", showscale=place == 1,
                hovertemplate="%{y}<br>dimension %{x}: %{z:.2f}<extra></extra>",
                colorbar={
                    "thickness": 10, "outlinewidth": 0, "len": 0.5, "y": 1, "yanchor": "top", "tickfont": {"size": 11},
                },
            ),
            row=place, col=1,
        )  # fmt: skip
        figure.update_yaxes(
            tickmode="array", tickvals=list(range(len(part))), ticktext=labels, range=[len(part) - 0.5, -0.5],
            row=place, col=1,
        )  # fmt: skip
    dress(figure)
    figure.update_xaxes(type="category", showticklabels=False, showgrid=False, ticks="")
    figure.update_yaxes(showgrid=False, ticks="", tickfont_size=11)
    figure.update_annotations(x=0, xanchor="left", font_size=12.5)
    figure.update_layout(height=height, margin_t=28)
    return figure


def _pair_name(data: GateData, first: int, second: int, length: int) -> str:
    names = [data.names[first]] if first == second else [data.names[first], data.names[second]]
    return " – ".join(plain_text(n if len(n) <= length else f"{n[: length - 1]}…") for n in names)
