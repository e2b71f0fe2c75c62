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
_WIDTH_TO_HEIGHT = 1.5
_LETTER = 7.0  # pixels


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
    low, high = float(found.points[:, 1].min()), float(found.points[:, 1].max())
    pad = 0.1 * reach + 0.1 * (high - low)
    bottom, top = low - 1.2 * pad, high + 1.5 * pad
    labels = [data.label(i) for i in range(len(names))]
    scale = height * min(_WIDTH_TO_HEIGHT / (2 * reach), 1 / (top - bottom))
    figure = go.Figure(
        go.Scatter(
            x=x, y=y, mode="markers+text" if labelled else "markers", cliponaxis=False,
            text=labels if labelled else None,
            textposition=_label_places(found, labels, scale) if labelled else None,
            marker={
                "size": 11 if labelled else 6,
                "color": [data.colour(group) for group in groups] if groups is not None else PALETTE[0],
            },
            customdata=names if groups is None else [f"{n}, {plain_text(g)}" for n, g in zip(names, groups, strict=True)],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )  # fmt: skip
    dress(figure)
    middle = {"showticklabels": False, "zeroline": True, "zerolinecolor": "rgba(128,128,128,0.3)"}
    figure.update_xaxes(**middle, range=[-reach, reach])
    figure.update_yaxes(**middle, range=[bottom, top], scaleanchor="x", constrain="domain")
    figure.update_layout(height=height)
    return figure


def _label_places(found: ClassMap, labels: list[str], scale: float) -> list[str]:
    """Where each label stands by its point, so that few cover each other: one after another takes the freest of four places.

    Args:
        found: the map.
        labels: of the points.
        scale: pixels to a unit, on a page of the usual width.
    """
    points = found.points * scale
    boxes: list[tuple[float, float, float, float]] = [(x - 6, y - 6, x + 6, y + 6) for x, y in points.tolist()]
    places = []
    for (x, y), label in zip(points.tolist(), labels, strict=True):
        width = _LETTER * len(label)
        choices = {
            "top center": (x - width / 2, y + 8, x + width / 2, y + 24),
            "bottom center": (x - width / 2, y - 24, x + width / 2, y - 8),
            "middle right": (x + 9, y - 8, x + 9 + width, y + 8),
            "middle left": (x - 9 - width, y - 8, x - 9, y + 8),
        }
        place = min(choices, key=lambda name: sum(_common(choices[name], box) for box in boxes))
        boxes.append(choices[place])
        places.append(place)
    return places


def _common(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """The area that two boxes (left, bottom, right, top) share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
