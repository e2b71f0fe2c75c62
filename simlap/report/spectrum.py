"""The spectrum of the features: how the variance is spread over dimensions, early in training and at its end."""

from __future__ import annotations

import re
from statistics import fmean

import plotly.graph_objects as go

from simlap.record.view import StudyView
from simlap.report.compare import common_epochs, values_at
from simlap.report.figures import arm_styles, dress, plain_text

_SHARE = re.compile(r"collapse/spectrum_(\d+)")
TEXT = (
    "Share of the variance that the eigenvalue of each rank has, of the covariance of the backbone's features: means over all "
    "planned seeds. A line that falls steeply: few dimensions are used. Thin: where it was first measured; thick: last."
)


def spectra(study: StudyView) -> go.Figure | None:
    """Share of the variance by rank, on logarithmic axes; None where no arm's seeds were all measured at a common epoch."""
    figure, styles = go.Figure(), arm_styles(study)
    for arm in study.arms:
        measured = {name for cell in arm.cells for row in cell.rows for name in row.metrics if _SHARE.fullmatch(name)}
        names = sorted(measured, key=_rank)
        epochs = common_epochs(study, [arm], names[0]) if names else []
        style = styles[arm.name]
        for epoch in dict.fromkeys([epochs[0], epochs[-1]] if epochs else []):
            found = {name: values_at(study, arm, name, epoch) for name in names}
            means = {_rank(name): fmean(values) for name, values in found.items() if values is not None}
            shown = {rank: mean for rank, mean in means.items() if mean > 0}
            last = epoch == epochs[-1]
            figure.add_trace(
                go.Scatter(
                    x=list(shown), y=[100 * mean for mean in shown.values()], mode="lines+markers" if last else "lines",
                    name=plain_text(arm.name), meta=arm.name, opacity=1.0 if last else 0.45, showlegend=False,
                    line={"color": style.colour, "dash": style.dash, "width": 2.5 if last else 1},
                    marker={"color": style.colour, "symbol": style.symbol, "size": 6},
                    hovertemplate=f"epoch {epoch}, rank %{{x}}: %{{y:.2g}}%",
                )
            )  # fmt: skip
    if not any(len(trace.x or ()) for trace in figure.data):
        return None
    figure.update_layout(height=360)
    dress(figure)
    figure.update_xaxes(type="log", title_text="rank of the eigenvalue")
    figure.update_yaxes(type="log", title_text="share of the variance, %")
    return figure


def _rank(name: str) -> int:
    found = _SHARE.fullmatch(name)
    assert found is not None
    return int(found[1])
