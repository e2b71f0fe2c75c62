"""How open and how decided the gates were over training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import plotly.graph_objects as go

from simlap.record.view import EpochRow
from simlap.report.figures import PALETTE, dress, plain_text
from simlap.report.page import plot_box, section

TRAINING_METRICS = {
    "gate/activation": "Activation (sum of a gate)",
    "gate/open_fraction": "Share of gates above ½",
    "gate/entropy": "Entropy (nats)",
}
_GREY = "#808080"


def training_section(training: Mapping[str, Sequence[EpochRow]], plots: dict[str, go.Figure]) -> str:
    """Small curves, one per metric; empty where nothing was recorded. Adds to `plots`.

    Args:
        training: epochs by run.
        plots: figures of the page.
    """
    parts = []
    for number, (metric, title) in enumerate(TRAINING_METRICS.items()):
        curves = {run: _curve(rows, metric) for run, rows in training.items()}
        curves = {run: curve for run, curve in curves.items() if curve}
        if curves:
            name = f"training-{number}"
            plots[name] = curves_figure(curves, metric)
            parts.append(f"<div><h3>{title}</h3>{plot_box(name, plots)}</div>")
    if not parts:
        return ""
    text = (
        "Means over each epoch's batches, of the gates as they were in training (with their noise, where there is any). Entropy "
        f"is at most ln 2 = {math.log(2):.2f}, dotted, where every gate is at ½, and 0 where all are decided."
    )
    if len(training) > 1:
        text += " Thin: single seeds. Thick: their mean, over the epochs that all reached."
    return section("Over training", text, f'<div class="small">{"".join(parts)}</div>')


def curves_figure(curves: Mapping[str, Mapping[int, float]], metric: str) -> go.Figure:
    """One metric by epoch, of one run or of several."""
    figure = go.Figure()
    several = len(curves) > 1
    for run, curve in curves.items():
        figure.add_trace(
            go.Scatter(
                x=list(curve), y=[round(value, 5) for value in curve.values()], mode="lines" if len(curve) > 1 else "markers",
                line={"color": _GREY if several else PALETTE[0], "width": 1 if several else 2.5}, opacity=0.6 if several else 1,
                hovertemplate=f"{plain_text(run)}, epoch %{{x}}: %{{y:.4g}}<extra></extra>",
            )
        )  # fmt: skip
    if several:
        epochs = sorted(set.intersection(*(set(curve) for curve in curves.values())))
        figure.add_trace(
            go.Scatter(
                x=epochs, y=[round(fmean(curve[e] for curve in curves.values()), 5) for e in epochs], mode="lines",
                line={"color": PALETTE[0], "width": 2.5}, hovertemplate="mean, epoch %{x}: %{y:.4g}<extra></extra>",
            )
        )  # fmt: skip
    dress(figure)
    figure.update_layout(height=230, xaxis_title="epoch", xaxis_rangemode="tozero", yaxis_rangemode="tozero")
    if metric == "gate/entropy":
        figure.add_hline(y=math.log(2), line={"color": _GREY, "width": 1, "dash": "dot"})
        figure.update_yaxes(range=[0, 1.05 * math.log(2)])
    return figure


def _curve(rows: Sequence[EpochRow], metric: str) -> dict[int, float]:
    values = {row.epoch: row.metrics[metric] for row in rows if metric in row.metrics}
    return {epoch: value for epoch, value in values.items() if math.isfinite(value)}
