"""What an arm costs and what it reaches: training time of a seed against the metric, and the arms that none beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from simlap.record.view import StudyView
from simlap.report.compare import common_epochs, final_values, planned_cells, values_at
from simlap.report.figures import arm_styles, dress, plain_text
from simlap.report.page import described
from simlap.report.shown import MAX_POINTS
from simlap.report.stats import Estimate, estimate
from simlap.report.words import decimals_for, metric_title, same_quantity, unit_of

_GREY = "#808080"
_LOG_RANGE = 30
"""Costs that are so many times apart stand on a logarithmic axis."""


@dataclass(frozen=True)
class ArmCost:
    """One arm."""

    arm: str
    seconds: float
    """Device time of its epochs so far, mean over its planned seeds."""
    value: Estimate
    """Of the report metric; of an arm that is not finished, of the metric of decisions, as far as all its seeds came."""
    epoch: int
    finished: bool
    """Whether every planned seed is done."""
    front: bool = False
    """No finished arm is both cheaper (or as cheap) and better."""


def costs(study: StudyView) -> list[ArmCost]:
    """In the order of the study; empty where no time was recorded."""
    found: list[ArmCost] = []
    comparable = same_quantity(study.metric, study.report_metric)
    for arm in study.arms:
        cells = [cell for cell in planned_cells(study, arm) if cell is not None and cell.seconds > 0]
        if not cells:
            continue
        seconds = sum(cell.seconds for cell in cells) / len(cells)
        values, epoch, finished = final_values(study, arm), study.epochs, True
        if values is None:
            epochs = common_epochs(study, [arm], study.metric) if comparable else []
            if not epochs:
                continue
            values, epoch, finished = values_at(study, arm, study.metric, epochs[-1]), epochs[-1], False
        if values is not None:
            found.append(ArmCost(arm.name, seconds, estimate(values), epoch, finished))
    front = _front(study, found)
    return [replace(one, front=one.arm in front) for one in found]


def _front(study: StudyView, found: Sequence[ArmCost]) -> set[str]:
    sign = 1.0 if study.more_is_better(study.report_metric) else -1.0
    best, names = -float("inf"), set()
    for one in sorted((c for c in found if c.finished), key=lambda c: (c.seconds, -sign * c.value.mean)):
        if sign * one.value.mean > best:
            best = sign * one.value.mean
            names.add(one.arm)
    return names


def shown_costs(study: StudyView, found: Sequence[ArmCost]) -> list[ArmCost]:
    """Those that are drawn: of very many, the front and the best."""
    if len(found) <= MAX_POINTS:
        return list(found)
    sign = 1.0 if study.more_is_better(study.report_metric) else -1.0
    order = sorted(found, key=lambda c: (c.front, c.finished, sign * c.value.mean), reverse=True)
    kept = {one.arm for one in order[:MAX_POINTS]}
    return [one for one in found if one.arm in kept]


def cost_figure(study: StudyView, found: Sequence[ArmCost]) -> go.Figure:
    """Points with 95 % intervals; the line joins the front. Open: not finished."""
    unit, styles, traces = unit_of(study.report_metric), arm_styles(study), []
    unit_name, scale = _time_unit(found)
    front = sorted((one for one in found if one.front), key=lambda one: one.seconds)
    if len(front) > 1:
        traces.append(
            go.Scatter(
                x=[one.seconds / scale for one in front], y=[one.value.mean * unit.scale for one in front], mode="lines",
                line={"color": _GREY, "width": 1.5, "dash": "dot", "shape": "hv"}, hoverinfo="skip", showlegend=False,
            )
        )  # fmt: skip
    for one in found:
        style = styles[one.arm]
        state = "" if one.finished else f"<br>not finished: epoch {one.epoch}, on {plain_text(study.metric)}"
        traces.append(
            go.Scatter(
                x=[one.seconds / scale], y=[one.value.mean * unit.scale], mode="markers", name=plain_text(one.arm),
                legendgroup=one.arm, meta=one.arm, cliponaxis=False,
                marker={
                    "color": style.colour, "symbol": style.symbol if one.finished else f"{style.symbol}-open",
                    "size": 13 if one.front else 10, "line": {"width": 2, "color": style.colour},
                },
                error_y={
                    "type": "data", "array": [(one.value.half_width or 0.0) * unit.scale], "thickness": 1.5, "width": 4,
                    "color": style.colour,
                },
                hovertemplate=f"%{{y:.2f}}, %{{x:.3g}} {unit_name}{state}",
            )
        )  # fmt: skip
    figure = dress(go.Figure(traces))
    spread = [one.seconds for one in found]
    log = max(spread) > _LOG_RANGE * min(spread)
    title = metric_title(study.report_metric)
    figure.update_xaxes(title_text=f"training time of a seed ({unit_name})", type="log" if log else "linear")
    figure.update_xaxes(rangemode="normal" if log else "tozero")
    figure.update_yaxes(title_text=title[:1].upper() + title[1:])
    figure.update_layout(height=420, hovermode="closest")
    best = "; ".join(f"{one.arm} {value_text(study, one)} in {time_text(one.seconds)}" for one in front)
    return described(
        figure, "Cost against accuracy", f"Training time against {title}. No arm is cheaper and better than: {best}."
    )


def value_text(study: StudyView, one: ArmCost) -> str:
    """`94.6 ± 0.8`."""
    unit = unit_of(study.report_metric)
    decimals = decimals_for(unit, one.value.half_width, one.value.mean)
    half = one.value.half_width
    return unit.number(one.value.mean, decimals) + (f" ± {unit.number(half, decimals)}" if half is not None else "")


def time_text(seconds: float) -> str:
    """`8.5 s`, `12 min`, `3.4 h`."""
    name, scale = next((unit for unit in _UNITS if seconds >= 2 * unit[1]), _UNITS[-1])
    return f"{seconds / scale:.3g} {name}"


_UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))


def _time_unit(found: Sequence[ArmCost]) -> tuple[str, float]:
    most = max(one.seconds for one in found)
    return next((unit for unit in _UNITS if most >= 2 * unit[1]), _UNITS[-1])
