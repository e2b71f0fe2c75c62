"""The frame of a page: one self-contained HTML file with its style, its figures and the library that draws them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from simlap.report.assets import CSS, SCRIPT


def document(title: str, body: str, plots: Mapping[str, go.Figure], style: str = "") -> str:
    """The whole page.

    Args:
        title: plain text, of the browser's tab.
        body: HTML of the page's content, with a `plot_box` for each figure.
        plots: figures by the names of their boxes.
        style: more CSS.
    """
    data = {name: json.loads(figure.to_json()) for name, figure in plots.items()}
    for figure in data.values():
        figure["layout"].pop("template", None)
        figure["layout"]["showlegend"] = False  # the page has its own keys, which wrap on phones
    library = f"<script>{get_plotlyjs()}</script>" if data else ""
    script = f"<script>{SCRIPT}</script>" if data else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{CSS}{style}</style></head><body><main>{body}"
        "<footer>Made by simlap. This page is complete in itself and works offline.</footer></main>"
        f'<script type="application/json" id="figures">{_json(data)}</script>{library}{script}</body></html>\n'
    )


def section(title: str, text: str, content: str) -> str:
    """A headed part of the page. `title` and `text` are plain text, `content` is HTML."""
    lead = f'<p class="lead">{escape(text)}</p>' if text else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{content}</section>"


def plot_box(name: str, plots: Mapping[str, go.Figure]) -> str:
    """The place of a figure. The height is set beforehand, so that the page does not jump when plots appear."""
    return f'<div class="plot" id="{name}" style="height:{plots[name].layout.height}px"></div>'


def _json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
