"""The plots of the gate analysis: heat map under its dendrogram, scatter against other distances, openness per class."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from simlap.report.figures import PALETTE, dress, plain_text
from simlap.report.page import described

Array = NDArray[np.float64]
GROUP_COLOURS: tuple[str, ...] = (*PALETTE, *qualitative.Dark24)
"""Of the hierarchy's groups; with more groups than these, none is coloured."""
_GREY = "#808080"
_MAX_TICKS, _MAX_POINTS, _MAX_NAME = 60, 5000, 18
MAX_CELLS = 400
"""Rows of the heat map: with more classes than these, neighbours in the tree are shown together."""
_TREE, _STRIP = 130, 14  # pixels


class GateData:
    """What the artefact holds, as arrays."""

    def __init__(self, artefact: Mapping[str, Any]) -> None:
        self.names: list[str] = artefact["class_names"]
        c = len(self.names)
        self.first, self.second = np.triu_indices(c, 1)
        self.distance = _array(artefact["distance"])
        """Condensed, as `first` and `second` say."""
        self.activation = self.square(_array(artefact["activation"]))
        """[C, C], NaN on the diagonal."""
        self.own = _array(artefact["self_activation"])
        named = {"features": artefact["feature_distance"], "hierarchy": artefact["semantic_distance"]}
        self.others = {name: _array(values) for name, values in named.items() if values is not None}
        self.groups: list[str] | None = artefact["groups"]
        self.group_names = list(dict.fromkeys(self.groups or []))
        self.merges: list[list[float]] = artefact["linkage"]
        self.method: str = artefact["linkage_method"]
        self.leaves: list[int] = artefact["leaf_order"]
        self.correlations: dict[str, dict[str, Any]] = artefact["correlations"]
        self.metrics: dict[str, float] = artefact["metrics"]
        self.chance: dict[str, dict[str, float]] = artefact["chance"]
        self.notes: list[str] = artefact["notes"]
        self.pair_gates: dict[str, Any] | None = artefact.get("pair_gates")
        """Of single pairs; records of older versions have none, nor have several seeds together."""
        self.seeds: dict[str, dict[str, float]] = artefact.get("seeds", {})
        """Metrics by seed, of several seeds together."""
        self.agreement: dict[str, float] | None = artefact.get("agreement")

    def square(self, condensed: Array) -> Array:
        """A symmetric matrix of condensed values, NaN on the diagonal."""
        matrix = np.full((len(self.names), len(self.names)), np.nan)
        matrix[self.first, self.second] = matrix[self.second, self.first] = condensed
        return matrix

    def colour(self, group: str | None) -> str:
        """Of a group; grey for none, and for all where there are too many groups."""
        if group is None or len(self.group_names) > len(GROUP_COLOURS):
            return _GREY
        return GROUP_COLOURS[self.group_names.index(group)]

    def label(self, row: int) -> str:
        """A class's name for an axis."""
        name = self.names[row]
        return plain_text(name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…")


def group_keys(data: GateData) -> str:
    """The colours of the groups, as HTML; empty where there are none."""
    if data.groups is None or len(data.group_names) > len(GROUP_COLOURS):
        return ""
    spans = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in zip(data.group_names, GROUP_COLOURS, strict=False)
    )
    return f'<div class="keys">{spans}</div>'


def block_size(classes: int) -> int:
    """How many neighbouring classes share a row of the heat map: one, up to so many classes that the page stays light."""
    return -(-classes // MAX_CELLS)


def _in_blocks(matrix: Array, size: int) -> Array:
    """Means over blocks of so many rows and columns, NaN left out."""
    if size == 1:
        return matrix
    n = -(-len(matrix) // size) * size
    padded = np.full((n, n), np.nan)
    padded[: len(matrix), : len(matrix)] = matrix
    blocks = padded.reshape(n // size, size, n // size, size)
    known = np.isfinite(blocks)
    count = known.sum((1, 3))
    total = np.where(known, blocks, 0).sum((1, 3))
    means: Array = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return means


def heat_map(data: GateData) -> go.Figure:
    """The distances in the order of the tree, with the tree and the groups above. Of very many classes, blocks of neighbours."""
    c, leaves = len(data.names), data.leaves
    size = block_size(c)
    side = max(300, min(820, 24 * c))
    strip = _STRIP if data.groups is not None else 1
    figure = make_subplots(
        rows=3, cols=1, shared_xaxes=True, row_heights=[_TREE, strip, side], vertical_spacing=0.006,
    )  # fmt: skip
    for colour, x, y in _branches(data):
        figure.add_trace(
            go.Scatter(x=x, y=y, mode="lines", line={"color": colour, "width": 1.6}, hoverinfo="skip"), row=1, col=1
        )
    if data.groups is not None:
        colours = [data.colour(data.groups[leaf]) for leaf in leaves]
        names = [plain_text(data.groups[leaf]) for leaf in leaves]
        figure.add_trace(
            go.Bar(
                x=list(range(c)), y=[1] * c, width=1, marker={"color": colours, "line": {"width": 0}}, customdata=names,
                hovertemplate="%{customdata}<extra></extra>",
            ),
            row=2, col=1,
        )  # fmt: skip
    matrix = _in_blocks(data.square(data.distance)[np.ix_(leaves, leaves)], size)
    middles = [i * size + (size - 1) / 2 for i in range(len(matrix))]
    texts = [plain_text(data.names[leaf]) for leaf in leaves]
    figure.add_trace(
        go.Heatmap(
            z=[[None if np.isnan(v) else float(f"{v:.3g}") for v in row] for row in matrix.tolist()],
            customdata=[[[a, b] for b in texts] for a in texts] if c <= _MAX_TICKS * 2 else None,
            x=middles, y=middles, colorscale="Viridis", reversescale=True, xgap=int(c < 40), ygap=int(c < 40),
            hoverongaps=False,
            hovertemplate="%{customdata[0]} – %{customdata[1]}<br>distance %{z}<extra></extra>" if c <= _MAX_TICKS * 2 else None,
            colorbar={"thickness": 10, "outlinewidth": 0, "len": 0.5, "y": 0, "yanchor": "bottom", "tickfont": {"size": 11}},
        ),
        row=3, col=1,
    )  # fmt: skip
    dress(figure)
    ticks: dict[str, Any] = {
        "tickmode": "array",
        "tickvals": list(range(c)),
        "ticktext": [data.label(i) for i in leaves],
    }
    if c > _MAX_TICKS:
        ticks = {"showticklabels": False}
    for row in (1, 2):
        figure.update_xaxes(showgrid=False, visible=False, row=row, col=1)
        figure.update_yaxes(showgrid=False, visible=False, row=row, col=1)
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_xaxes(
        **ticks, showgrid=False, ticks="", tickangle=-90 if max(map(len, data.names)) > 3 else 0, range=[-0.5, c - 0.5],
        row=3, col=1,
    )  # fmt: skip
    figure.update_yaxes(**ticks, showgrid=False, ticks="", range=[c - 0.5, -0.5], row=3, col=1)
    figure.update_layout(height=_TREE + strip + side + 110, bargap=0)
    text = f"Heat map of the distances between the gates of {c} classes, in the order of the tree above it."
    return described(figure, "Distances between the gates of classes", text)


def _branches(data: GateData) -> list[tuple[str, list[float | None], list[float | None]]]:
    """The tree as lines, one list of bends per colour: grey, or of the group that all leaves below belong to."""
    c = len(data.names)
    x = {leaf: float(place) for place, leaf in enumerate(data.leaves)}
    y = dict.fromkeys(range(c), 0.0)
    group: dict[int, str | None] = {leaf: data.groups[leaf] if data.groups else None for leaf in range(c)}
    lines: dict[str, tuple[list[float | None], list[float | None]]] = {}
    for i, (left, right, height, _) in enumerate(data.merges):
        a, b, node = int(left), int(right), c + i
        x[node], y[node] = (x[a] + x[b]) / 2, height
        group[node] = group[a] if group[a] == group[b] else None
        xs, ys = lines.setdefault(data.colour(group[node]), ([], []))
        xs += [x[a], x[a], x[b], x[b], None]
        ys += [y[a], height, height, y[b], None]
    return [(colour, xs, ys) for colour, (xs, ys) in lines.items()]


def scatter(data: GateData, other: str, values: Array) -> go.Figure:
    """Gate distance against another distance, one point per pair (at most so many, evenly spaced); `values` condensed."""
    known = np.flatnonzero(np.isfinite(values))
    if len(known) > _MAX_POINTS:
        known = known[np.arange(_MAX_POINTS) * len(known) // _MAX_POINTS]
    figure = go.Figure()
    groups = data.groups
    same = np.array([groups is None or groups[data.first[i]] == groups[data.second[i]] for i in known], dtype=bool)
    for rows, symbol in ((known[~same], "circle-open"), (known[same], "circle")):
        if not len(rows):
            continue
        colours = [data.colour(groups[data.first[i]]) if groups is not None else PALETTE[0] for i in rows]
        figure.add_trace(
            go.Scatter(
                x=values[rows].tolist(), y=data.distance[rows].tolist(), mode="markers",
                marker={
                    "symbol": symbol, "size": 7 if len(known) < 1000 else 4, "opacity": 0.8,
                    "color": colours if symbol == "circle" else _GREY,
                },
                text=[f"{plain_text(data.names[data.first[i]])} – {plain_text(data.names[data.second[i]])}" for i in rows],
                hovertemplate="%{text}<br>%{x:.3f}, gates %{y:.3f}<extra></extra>", cliponaxis=False,
            )
        )  # fmt: skip
    title = "distance in the hierarchy" if other == "hierarchy" else "1 − cosine of the classes' mean features"
    figure.update_layout(height=340, xaxis_title=title, yaxis_title="gate distance")
    text = f"Gate distance of {len(known)} pairs of classes against the {title}; the correlation stands under What is seen."
    return described(dress(figure), f"Gate distance against {title}", text)


def own_gates(data: GateData) -> go.Figure:
    """Openness of each class's own gate, and of its gates with others on average."""
    order = data.leaves
    x = list(range(len(order)))
    with_others = np.nanmean(data.activation, axis=1)
    figure = go.Figure(
        [
            go.Scatter(
                x=x, y=with_others[order].tolist(), mode="lines", line={"color": _GREY, "width": 2, "shape": "hvh"},
                hovertemplate="with others: %{y:.3f}<extra></extra>",
            ),
            go.Scatter(
                x=x, y=data.own[order].tolist(), mode="markers",
                marker={
                    "size": 10 if len(x) <= _MAX_TICKS else 5,
                    "color": [data.colour(data.groups[i]) if data.groups else PALETTE[0] for i in order],
                },
                text=[plain_text(data.names[i]) for i in order], hovertemplate="%{text}: %{y:.3f}<extra></extra>",
            ),
        ]
    )  # fmt: skip
    ticks: dict[str, Any] = {"tickmode": "array", "tickvals": x, "ticktext": [data.label(i) for i in order]}
    dress(figure)
    figure.update_xaxes(**(ticks if len(x) <= _MAX_TICKS else {"showticklabels": False}), showgrid=False)
    figure.update_yaxes(rangemode="tozero", title_text="share that is open")
    figure.update_layout(height=300)
    text = (
        f"Share that is open of the own gates of {len(x)} classes, from {np.nanmin(data.own):.3f} to {np.nanmax(data.own):.3f}, "
        "beside the mean of each class's gates with others."
    )
    return described(figure, "Openness of each class's own gate", text)


def _array(values: list[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
