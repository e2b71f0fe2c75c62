"""The frame of a page: one self-contained HTML file with its style, its figures and the library that draws them."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from simlap.report.assets import CSS, SCRIPT

_NO_PLOT = "This plot needs scripts, and a browser of 2023 or newer. Its numbers stand in the tables and sentences of this page."
_DIGITS = 6
_MAX_ROWS = 30


def document(title: str, body: str, plots: Mapping[str, go.Figure], style: str = "") -> str:
    """The whole page. The library is a third of its size compressed, which browsers since 2023 undo by themselves.

    Args:
        title: plain text, of the browser's tab.
        body: HTML of the page's content, with a `plot_box` for each figure.
        plots: figures by the names of their boxes.
        style: more CSS.
    """
    data = {name: _figure(figure) for name, figure in plots.items()}
    library = packed = ""
    if data:
        packed = (
            f'<script type="application/gzip" id="figures">{_packed(json.dumps(data, separators=(",", ":")))}</script>'
        )
        library = f'<script type="application/gzip" id="plotly">{_library()}</script>'
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{CSS}{style}</style>"
        '<script>document.documentElement.classList.add("js")</script></head>'
        f"<body><main>{body}</main>"
        "<footer>Made by simlap. This page is complete in itself and works offline.</footer>"
        f"{packed}{library}<script>{SCRIPT}</script></body></html>\n"
    )


def section(title: str, text: str, content: str) -> str:
    """A headed part of the page. `title` and `text` are plain text, `content` is HTML."""
    lead = f'<p class="lead">{escape(text)}</p>' if text else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{content}</section>"


def described(figure: go.Figure, title: str, text: str) -> go.Figure:
    """The figure, with its title and with what it shows in words: for those who do not see it, here and in Markdown."""
    return figure.update_layout(meta={"title": title, "text": text})


def plot_box(name: str, plots: Mapping[str, go.Figure]) -> str:
    """The place of a figure. The height is set beforehand, so that the page does not jump when plots appear."""
    layout = plots[name].layout
    label = (layout.meta or {}).get("text", "Plot")
    return (
        f'<div class="plot" id="{name}" role="img" aria-label="{escape(label)}" style="--height:{layout.height}px">'
        f"<p>{_NO_PLOT}</p></div>"
    )


def tall(table: str, rows: int, name: str) -> str:
    """A table that scrolls in a box of its own where it is long, so that what follows is found."""
    if rows <= _MAX_ROWS:
        return table
    return f'<div class="tall" role="region" tabindex="0" aria-label="{escape(name)}">{table}</div>'


def numbers(head: Sequence[str], rows: Sequence[Sequence[str]], summary: str = "Numbers of this plot") -> str:
    """A small table beside a plot, closed at first. All is plain text; the first column names what a row is about."""
    cells = ["".join(f'<td class="num">{escape(text) or "–"}</td>' for text in row[1:]) for row in rows]
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{rest}</tr>' for row, rest in zip(rows, cells, strict=True)
    )
    top = "".join(f'<th scope="col"{" class=num" * (i > 0)}>{escape(text)}</th>' for i, text in enumerate(head))
    return (
        f'<details class="numbers"><summary>{escape(summary)}</summary>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(summary)}">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _figure(figure: go.Figure) -> dict[str, Any]:
    found: dict[str, Any] = _rounded(json.loads(figure.to_json()))
    layout = found["layout"]
    layout.pop("template", None)
    layout.pop("meta", None)
    layout["showlegend"] = False  # the page has its own keys, which wrap on phones
    return found


def _rounded(value: Any) -> Any:
    """Numbers with as many digits as a plot can show."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("figures hold finite numbers, and None where there is none")
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return value


def _packed(text: str) -> str:
    """Compressed, in letters that cannot end the element they stand in; the same for the same text."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@functools.cache
def _library() -> str:
    return _packed(get_plotlyjs())
