"""The spectrum of the features: how the variance is spread over dimensions, early in training and at its end."""

from __future__ import annotations

import re
from statistics import fmean

import plotly.graph_objects as go

from simlap.record.view import ArmView, StudyView
from simlap.report.compare import common_epochs, values_at
from simlap.report.figures import arm_styles, dress, plain_text
from simlap.report.page import described, numbers
from simlap.report.shown import curve_arms

_SHARE = re.compile(r"collapse/spectrum_(\d+)")
TEXT = (
    "Share of the variance that the eigenvalue of each rank has, of the covariance of the backbone's features: means over all "
    "planned seeds. A line that falls steeply: few dimensions are used. Thin: where it was first measured; thick: last."
)
_TITLE = "Spectrum of the features"


def spectra(study: StudyView) -> go.Figure | None:
    """Share of the variance by rank, on logarithmic axes; None where no arm's seeds were all measured at a common epoch."""
    figure, styles, said = go.Figure(), arm_styles(study), []
    for arm in curve_arms(study):
        epochs, style = _epochs(study, arm), styles[arm.name]
        for epoch in dict.fromkeys([epochs[0], epochs[-1]] if epochs else []):
            shares = {rank: share for rank, share in _shares(study, arm, epoch).items() if share > 0}
            last = epoch == epochs[-1]
            figure.add_trace(
                go.Scatter(
                    x=list(shares), y=[100 * share for share in shares.values()], name=plain_text(arm.name),
                    mode="lines+markers" if last else "lines", meta=arm.name, opacity=1.0 if last else 0.45,
                    line={"color": style.colour, "dash": style.dash, "width": 2.5 if last else 1},
                    marker={"color": style.colour, "symbol": style.symbol, "size": 6}, showlegend=False,
                    hovertemplate=f"epoch {epoch}, rank %{{x}}: %{{y:.2g}}%",
                )
            )  # fmt: skip
            if last and 1 in shares:
                said.append(f"{arm.name} {shares[1]:.0%} in the first")
    if not any(len(trace.x or ()) for trace in figure.data):
        return None
    figure.update_layout(height=360)
    dress(figure)
    figure.update_xaxes(type="log", title_text="rank of the eigenvalue", tickvals=[2**power for power in range(14)])
    figure.update_yaxes(type="log", title_text="share of the variance, %", dtick=1, exponentformat="power")
    return described(figure, _TITLE, f"Share of the variance by rank of the eigenvalue: {'; '.join(said)}.")


def spectrum_table(study: StudyView) -> str:
    """The shares where they were last measured, in percent."""
    rows, ranks = [], list[int]()
    for arm in curve_arms(study):
        if epochs := _epochs(study, arm):
            shares = _shares(study, arm, epochs[-1])
            ranks = max(ranks, list(shares), key=len)
            rows.append([f"{arm.name}, epoch {epochs[-1]}", *(f"{100 * share:.2g}" for share in shares.values())])
    return numbers(["Share in %", *map(str, ranks)], [row + [""] * (len(ranks) + 1 - len(row)) for row in rows])


def _epochs(study: StudyView, arm: ArmView) -> list[int]:
    """At which all planned seeds of the arm were measured."""
    return common_epochs(study, [arm], "collapse/spectrum_0001")


def _shares(study: StudyView, arm: ArmView, epoch: int) -> dict[int, float]:
    """Means over seeds, by rank."""
    measured = {name for cell in arm.cells for row in cell.rows if row.epoch == epoch for name in row.metrics}
    found = {name: values_at(study, arm, name, epoch) for name in sorted(measured) if _SHARE.fullmatch(name)}
    return {int(name.rpartition("_")[2]): fmean(values) for name, values in found.items() if values is not None}
