"""The page's figures as image files, for Markdown: light, with a title and a legend of their own, readable at 800 pixels."""

from __future__ import annotations

import copy
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import plotly.graph_objects as go
import plotly.io

from simlap.errors import UserError
from simlap.report.figures import plain_text
from simlap.storage import Storage

ImageFormat = Literal["png", "svg", "pdf"]
WIDTH = 800
_SCALE = 2
"""Pixels of a PNG for each pixel of the layout: sharp in print, and on screens with small pixels."""
_TEXT, _PAPER = "#1a1d21", "#ffffff"
_LEGEND_ROW, _LEGEND_LETTER, _LEGEND_ENTRY = 19, 6.6, 55  # pixels


@dataclass(frozen=True)
class FigureFile:
    """One image."""

    name: str
    title: str
    text: str
    """What it shows, in words."""
    path: Path


def write_figures(plots: Mapping[str, go.Figure], folder: Path, format: ImageFormat) -> list[FigureFile]:
    """Write every figure to `<folder>/<name>.<format>` by kaleido, which draws them in a browser of this machine.

    Args:
        plots: as `simlap.report.html.figures_of` gives them.
        folder: made where it is not there.
        format: of the files.

    Raises:
        UserError: kaleido is not installed, there is no browser, or the folder cannot be written to.
    """
    try:
        import kaleido  # noqa: F401  # an extra
    except ImportError as error:
        raise UserError(
            "images are drawn by kaleido, which is not installed: install simlap[figures]", key="--figures"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be written: {error}", file=str(folder), key="--figures") from error
    if not os.access(folder, os.W_OK):
        raise UserError("cannot be written to", file=str(folder), key="--figures")
    found = []
    for name, figure in plots.items():
        said = figure.layout.meta or {}
        title = said.get("title", name)
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") if name.startswith("small-") else name
        found.append(FigureFile(name, title, said.get("text", ""), folder / f"{stem or name}.{format}"))
    made = [for_paper(figure) for figure in plots.values()]
    if not made:
        return []
    from choreographer.errors import BrowserClosedError, BrowserDepsError, BrowserFailedError

    try:
        plotly.io.write_images(
            fig=made, file=[str(one.path) for one in found], format=format, width=WIDTH,
            height=[figure.layout.height for figure in made], scale=_SCALE if format == "png" else 1,
        )  # fmt: skip
    except (RuntimeError, BrowserFailedError, BrowserDepsError, BrowserClosedError) as error:
        # plotly says by a plain RuntimeError that there is no browser
        raise UserError(
            "images are drawn by Chrome or Chromium, which was not found or did not start: install one, or name one in "
            f"BROWSER_PATH ({_first_line(error)})",
            key="--figures",
        ) from error
    return found


def store_figures(plots: Mapping[str, go.Figure], storage: Storage, folder: str, format: ImageFormat) -> list[str]:
    """Write every figure to a folder of a storage, in place of those that are there; returns their paths. Raises as `write_figures`."""
    with tempfile.TemporaryDirectory() as made:
        files = write_figures(plots, Path(made), format)
        storage.delete(folder)
        for one in files:
            storage.write(f"{folder}/{one.path.name}", one.path.read_bytes())
    return [f"{folder}/{one.path.name}" for one in files]


def for_paper(figure: go.Figure) -> go.Figure:
    """A copy as it is in a file: on white, with its title, and with a legend where it has several lines."""
    made = copy.deepcopy(figure)
    title = plain_text((figure.layout.meta or {}).get("title", ""))
    named = [trace for trace in made.data if trace.legendgroup and trace.showlegend is not False]
    rows = _legend_rows([trace.name or "" for trace in named]) if len(named) > 1 else 0
    below = rows * _LEGEND_ROW
    inner = made.layout.height
    made.update_layout(
        paper_bgcolor=_PAPER, plot_bgcolor=_PAPER, font_color=_TEXT, showlegend=rows > 0, width=WIDTH,
        title={
            "text": f"<b>{title}</b>", "x": 0.01, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 12}, "font_size": 15,
        },
        height=inner + 40 + below, margin_t=(made.layout.margin.t or 10) + 40,
    )  # fmt: skip
    if rows:  # below the axis and its title
        made.update_layout(
            legend={"orientation": "h", "y": -56 / (inner - 60), "yanchor": "top", "x": 0, "font_size": 11.5}
        )
    return made


def with_figures(markdown: str, files: Sequence[FigureFile], beside: Path) -> str:
    """The report with its figures, before what is said on reproducing it.

    Args:
        markdown: the report.
        files: as `write_figures` gives them.
        beside: the folder that the report is written to; links are relative to it.
    """
    if not files:
        return markdown
    lines = ["## Figures", ""]
    for one in files:
        link = quote(os.path.relpath(one.path, beside).replace(os.sep, "/"))
        lines += [f"### {_plain(one.title)}", "", f"![{_plain(one.text)}]({link})", ""]
    before, mark, rest = markdown.rpartition("## How to reproduce\n")
    block = "\n".join(lines)
    return f"{before}{block}\n{mark}{rest}" if mark else f"{markdown.rstrip()}\n\n{block}"


def _legend_rows(names: Sequence[str]) -> int:
    """As plotly lays a horizontal legend out: every entry as wide as the widest."""
    widest = max(len(name) for name in names) * _LEGEND_LETTER + _LEGEND_ENTRY
    columns = max(1, int((WIDTH - 60) // widest))
    return -(-len(names) // columns)


def _plain(text: str) -> str:
    """Text that Markdown takes as it is, in a heading or an image's description."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|" else c for c in text).replace("\n", " ")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
