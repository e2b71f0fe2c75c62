"""The map of the classes: two dimensions that keep as much as they can of the gates' distances."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from simlap.evaluate.class_map import ClassMap, class_map
from simlap.report.figures import PALETTE, dress, plain_text
from simlap.report.gate_figures import GateData, group_keys
from simlap.report.page import plot_box, section

_MAX_LABELS = 40
_HEIGHT = 440


def map_section(data: GateData, plots: dict[str, go.Figure]) -> str:
    """Empty where there is no map. Adds to `plots`."""
    found = class_map_of(data)
    if found is None:
        return ""
    plots["map"] = map_figure(data, found)
    return section("Map of the classes", map_text(found), group_keys(data) + plot_box("map", plots))


def class_map_of(data: GateData) -> ClassMap | None:
    """The map of a page's gate distances."""
    return class_map(np.nan_to_num(data.square(data.distance)))


def map_text(found: ClassMap) -> str:
    """What the map is and how far it can be trusted."""
    rank = "" if found.rank is None else f" and are ordered alike with ρ = {found.rank:.2f}"
    trust = "" if found.explained >= 0.5 else " Most of what sets the classes apart lies in other directions."
    return (
        "Classical scaling of the gate distances: classes whose pairs open as much as each opens for itself lie together. The "
        f"two axes hold {found.explained:.0%} of the spread; distances on the map differ from √d by a stress of "
        f"{found.stress:.2f} (0: none){rank}.{trust} Axes have no meaning of their own."
    )


def map_figure(data: GateData, found: ClassMap, *, height: int = _HEIGHT) -> go.Figure:
    """One point per class, named where there is room; both axes on one scale."""
    names = [plain_text(name) for name in data.names]
    labelled = len(names) <= _MAX_LABELS
    x, y = np.round(found.points, 4).T.tolist()
    groups = data.groups
    reach = 1.18 * float(np.abs(found.points).max())
    figure = go.Figure(
        go.Scatter(
            x=x, y=y, mode="markers+text" if labelled else "markers", cliponaxis=False,
            text=[data.label(i) for i in range(len(names))] if labelled else None, textposition=_label_places(found, reach),
            marker={
                "size": 11 if labelled else 6,
                "color": [data.colour(group) for group in groups] if groups is not None else PALETTE[0],
            },
            customdata=names if groups is None else [f"{n}, {plain_text(g)}" for n, g in zip(names, groups, strict=True)],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )  # fmt: skip
    dress(figure)
    figure.update_xaxes(
        showticklabels=False, range=[-reach, reach], zeroline=True, zerolinecolor="rgba(128,128,128,0.3)"
    )
    low, high = float(found.points[:, 1].min()), float(found.points[:, 1].max())
    pad = 0.1 * reach + 0.1 * (high - low)
    figure.update_yaxes(
        showticklabels=False, range=[low - pad, high + 1.5 * pad], scaleanchor="x", constrain="domain", zeroline=True,
        zerolinecolor="rgba(128,128,128,0.3)",
    )  # fmt: skip
    figure.update_layout(height=height)
    return figure


def _label_places(found: ClassMap, reach: float) -> list[str]:
    """Above its point, or below where another class is close above."""
    offsets = (found.points[None] - found.points[:, None]) / reach  # [C, C, 2], from the one to the other
    crowded = (np.abs(offsets[..., 0]) < 0.14) & (offsets[..., 1] >= 0) & (offsets[..., 1] < 0.1)
    np.fill_diagonal(crowded, False)
    return ["bottom center" if row.any() else "top center" for row in crowded]
