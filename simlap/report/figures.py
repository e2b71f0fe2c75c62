"""The plots (plotly): forest of differences, effects per factor, learning curves and small diagnostic curves.

Figures are transparent and take their text colours from the page they stand on. An arm has the same colour, dash and symbol in
all of them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from simlap.record.view import ArmView, StudyView
from simlap.report.compare import Comparison, Effect, common_epochs, planned_cells, values_at
from simlap.report.page import described
from simlap.report.shown import curve_arms, effect_rows, forest_rows
from simlap.report.stats import estimate, finite
from simlap.report.words import decimals_for, levels_text, metric_title, p_text, place, unit_of

# Okabe & Ito's colour-blind safe palette, without black and yellow, which vanish on a dark or a white page, and with a lighter
# blue that can be read on both.
PALETTE = ("#2A86C7", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")
COLLAPSE_METRICS = (
    "collapse/effective_rank",
    "collapse/participation_ratio",
    "collapse/unit_std_mean",
    "collapse/alignment",
    "collapse/uniformity",
    "collapse/embedding_effective_rank",
)
GATE_METRICS = ("gate/mean", "gate/entropy")
_GREY = "#808080"
_MAX_UNIFIED = 8
"""Arms whose values fit into one box beside the pointer."""
_MAX_SAID = 6


@dataclass(frozen=True)
class Style:
    """How an arm is drawn everywhere."""

    colour: str
    dash: str
    symbol: str


def arm_styles(study: StudyView) -> dict[str, Style]:
    """Colour for the factor with most levels, dash and symbol for the combination of the others, if that is readable."""
    n = len(PALETTE)
    fitting = [factor for factor, levels in study.factors.items() if len(levels) <= n]
    factor = max(fitting, key=lambda name: len(study.factors[name]), default=None)
    if factor is not None and all(arm.levels.get(factor) in study.factors[factor] for arm in study.arms):
        rest = [tuple(v for k, v in arm.levels.items() if k != factor) for arm in study.arms]
        order = list(dict.fromkeys(rest))
        if len(order) <= n:
            return {
                arm.name: _style(study.factors[factor].index(arm.levels[factor]), order.index(combination))
                for arm, combination in zip(study.arms, rest, strict=True)
            }
    return {arm.name: _style(i % n, i // n % n) for i, arm in enumerate(study.arms)}


def forest(study: StudyView, comparisons: Mapping[str, Comparison]) -> go.Figure:
    """Paired differences to the baseline with their intervals. Open symbols: not compared at the end."""
    styles = arm_styles(study)
    shown, _ = forest_rows(study, comparisons)
    figure = go.Figure()
    for comparison in shown:
        figure.add_trace(_interval(comparison, styles[comparison.arm], _label(comparison.arm)))
    _dress_intervals(figure, study, [c.arm for c in shown])
    figure.update_yaxes(range=[len(shown) - 0.5, -0.5])
    said = [f"{c.arm} {interval_text(c)}" for c in shown]
    return described(figure, "Difference to the baseline", f"Differences to the baseline: {_first(said)}.")


def effects_figure(study: StudyView, effects: Sequence[Effect]) -> go.Figure:
    """Simple effects, one panel per factor: level minus the baseline's level at each combination of the others."""
    shown, _ = effect_rows(study, effects)
    factors = [factor for factor in study.factors if any(effect.factor == factor for effect in shown)]
    if not factors:
        return go.Figure()
    counts = [sum(effect.factor == factor for effect in shown) for factor in factors]
    titles = [f"<b>{plain_text(factor)}</b>" for factor in factors]
    figure = make_subplots(
        rows=len(factors), cols=1, shared_xaxes=True, row_heights=counts, subplot_titles=titles,
        vertical_spacing=min(0.9 / max(1, len(factors)), 46 / (46 * len(shown) + 60 * len(factors))),
    )  # fmt: skip
    styles = arm_styles(study)
    for effect in shown:
        at = ", ".join(map(plain_text, effect.at.values()))
        label = f"{plain_text(effect.level)} − {plain_text(effect.reference_level)}" + (f"<br>at {at}" if at else "")
        row = factors.index(effect.factor) + 1
        figure.add_trace(_interval(effect.comparison, styles[effect.comparison.arm], label), row=row, col=1)
    _dress_intervals(figure, study, [], height=60 + 46 * len(shown) + 60 * len(factors))
    figure.update_xaxes(title_text="")
    figure.update_xaxes(title_text=_difference_title(study), row=len(factors), col=1)
    for row, count in enumerate(counts, start=1):
        figure.update_yaxes(range=[count - 0.5, -0.5], row=row, col=1)
    figure.update_layout(margin_t=30)
    figure.update_annotations(x=0, xanchor="left", font_size=13)
    said = [
        f"{e.factor} {e.level} minus {e.reference_level}{' at ' * bool(e.at)}{levels_text(e.at)} {interval_text(e.comparison)}"
        for e in shown
    ]
    return described(figure, "Effect of each factor", f"Effects of factors: {_first(said)}.")


def curves(study: StudyView, metric: str | None = None, *, small: bool = False) -> go.Figure | None:
    """`metric` (default: the decision metric) by epoch, None if it was never measured.

    Mean and 95 % band over the epochs that all planned seeds of the arm reached. What single seeds did beyond is drawn thin and
    not averaged; a cross marks where a seed stopped or failed.
    """
    metric = metric or study.metric
    unit, figure = unit_of(metric), go.Figure()
    styles, arms, ends = arm_styles(study), curve_arms(study), []
    band = 0.13 if len(arms) <= _MAX_UNIFIED else 0.05
    for arm in arms:
        style = styles[arm.name]
        epochs = common_epochs(study, [arm], metric)
        found = [estimate(values) for e in epochs if (values := values_at(study, arm, metric, e)) is not None]
        group = {"legendgroup": arm.name, "meta": arm.name}
        if not small and found and found[0].half_width is not None:
            high = [(e.mean if e.high is None else e.high) * unit.scale for e in found]
            low = [(e.mean if e.low is None else e.low) * unit.scale for e in found]
            figure.add_trace(
                go.Scatter(
                    x=epochs + epochs[::-1], y=high + low[::-1], fill="toself", fillcolor=style.colour, opacity=band,
                    line_width=0, mode="lines", hoverinfo="skip", showlegend=False, **group,
                )
            )  # fmt: skip
        decimals = decimals_for(unit, max((e.half_width or 0.0 for e in found), default=None))
        if found:
            ends.append(f"{arm.name} {unit.number(found[-1].mean, decimals)} at epoch {epochs[-1]}")
        half = [f" ± {unit.number(e.half_width, decimals)}" if e.half_width is not None else "" for e in found]
        mode = "lines" if len(epochs) > 1 else "markers"
        figure.add_trace(
            go.Scatter(
                x=epochs, y=[e.mean * unit.scale for e in found], mode=mode, name=plain_text(arm.name), text=half,
                line={"color": style.colour, "dash": style.dash, "width": 2 if small else 2.5},
                marker={"color": style.colour, "symbol": style.symbol},
                hovertemplate=f"%{{y:.{decimals}f}}%{{text}}", **group,
            )
        )  # fmt: skip
        _draw_rest(figure, study, arm, metric, style, epochs[-1] if epochs else 0, small)
    if not any(len(trace.x or ()) for trace in figure.data):
        return None
    title = metric_title(metric)
    figure.update_layout(
        hovermode="x unified" if len(arms) <= _MAX_UNIFIED else "closest", height=240 if small else 440, xaxis_title="epoch",
        yaxis_title=None if small else title[:1].upper() + title[1:], xaxis_rangemode="tozero",
    )  # fmt: skip
    title = title[:1].upper() + title[1:]
    return described(dress(figure), title, f"{title} by epoch, means over seeds: {_first(ends)}.")


def _draw_rest(
    figure: go.Figure, study: StudyView, arm: ArmView, metric: str, style: Style, common: int, small: bool
) -> None:
    """Single seeds beyond the common epoch, and where they ended."""
    unit = unit_of(metric)
    group = {"legendgroup": arm.name, "meta": arm.name, "showlegend": False}
    for seed, cell in zip(study.seeds_of(arm), planned_cells(study, arm), strict=True):
        rows = [
            (r.epoch, r.metrics[metric] * unit.scale)
            for r in (cell.rows if cell else [])
            if finite(r.metrics.get(metric))
        ]
        beyond = [(epoch, value) for epoch, value in rows if epoch >= common]
        if len(beyond) > 1 and not small:
            x, y = zip(*beyond, strict=True)
            line = {"color": style.colour, "dash": style.dash, "width": 1}
            figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=line, opacity=0.45, hoverinfo="skip", **group))
        if rows and not small and cell is not None and cell.state in ("stopped", "failed"):
            hover = f"{plain_text(arm.name)}, seed {seed}: {cell.state} after epoch {cell.epoch}<extra></extra>"
            marker = {"symbol": "x", "color": style.colour, "size": 8, "line": {"width": 0}}
            last_epoch, value = rows[-1]
            figure.add_trace(
                go.Scatter(x=[last_epoch], y=[value], mode="markers", marker=marker, hovertemplate=hover, **group)
            )


def _interval(comparison: Comparison, style: Style, label: str) -> go.Scatter:
    test, unit = comparison.paired, unit_of(comparison.metric)
    assert test is not None
    details = " · ".join(part for part in (p_text(test.p_adjusted), place(comparison)) if part)
    symbol = style.symbol if comparison.final else f"{style.symbol}-open"
    half = (test.half_width or 0.0) * unit.scale
    return go.Scatter(
        x=[test.mean * unit.scale], y=[label], mode="markers", showlegend=False, name=label, meta=comparison.arm,
        marker={"color": style.colour, "size": 11, "symbol": symbol, "line": {"width": 2, "color": style.colour}},
        error_x={"type": "data", "array": [half], "thickness": 2, "width": 5, "color": style.colour},
        hovertemplate=f"{interval_text(comparison)}<br>{details}<extra></extra>", cliponaxis=False,
    )  # fmt: skip


def interval_text(comparison: Comparison) -> str:
    """`-6.9 [-10.7, -3.0]`; of a comparison that could be made."""
    test, unit = comparison.paired, unit_of(comparison.metric)
    assert test is not None
    decimals = decimals_for(unit, test.half_width, test.mean)
    text = unit.number(test.mean, decimals, sign=True)
    if test.low is not None and test.high is not None:
        text += f" [{unit.number(test.low, decimals, sign=True)}, {unit.number(test.high, decimals, sign=True)}]"
    return text


def _dress_intervals(figure: go.Figure, study: StudyView, arms: Sequence[str], height: int | None = None) -> None:
    dress(figure)
    rows = max(1, len(arms))
    figure.update_layout(
        height=height or 90 + (46 if rows <= 15 else 38) * rows, xaxis_title_text=_difference_title(study)
    )
    figure.update_xaxes(zeroline=True, zerolinewidth=1.5, zerolinecolor=_GREY, rangemode="tozero")
    figure.update_yaxes(showgrid=False, ticks="", tickfont_size=12)


def dress(figure: go.Figure) -> go.Figure:
    """The look that all figures share; returns the figure."""
    figure.update_layout(
        template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12.5, "color": _GREY},
        margin={"l": 8, "r": 16, "t": 10, "b": 8}, hoverlabel={"font_size": 12.5},
        legend={"orientation": "h", "y": -0.18, "yanchor": "top"},
    )  # fmt: skip
    grid = {
        "gridcolor": "rgba(128,128,128,0.22)",
        "linecolor": "rgba(128,128,128,0.5)",
        "zeroline": False,
        "automargin": True,
    }
    figure.update_xaxes(**grid, title_standoff=8, title_font_size=12.5)
    figure.update_yaxes(**grid, title_standoff=8, title_font_size=12.5)
    return figure


def _difference_title(study: StudyView) -> str:
    return "difference in percentage points" if unit_of(study.report_metric).percent else "difference"


def _style(colour: int, other: int) -> Style:
    return Style(PALETTE[colour], DASHES[other], SYMBOLS[other])


def _label(name: str) -> str:
    """An arm's name on several lines, so that phones have room left for the plot."""
    return "<br>".join(plain_text(part.strip()) for part in re.split(r",|\s(?=[^\s=]+=)", name))


def _first(said: Sequence[str]) -> str:
    """What a figure's description says; a longer one nobody listens to."""
    more = len(said) - _MAX_SAID
    return "; ".join(said[:_MAX_SAID]) + (f"; and {more} more" if more > 0 else "")


def plain_text(text: str) -> str:
    """Plain text for plotly, which reads a little HTML."""
    return html.escape(text, quote=False)
