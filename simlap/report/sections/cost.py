"""Cost against accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from simlap.report.cost import cost_figure, costs, shown_costs, time_text, value_text
from simlap.report.page import numbers, plot_box, section
from simlap.report.sections.plots import keys
from simlap.report.shown import MAX_CURVES
from simlap.report.words import metric_title

if TYPE_CHECKING:
    from simlap.report.build import Report


def cost(report: Report, plots: dict[str, go.Figure]) -> str:
    study = report.study
    found = costs(study)
    if not found:
        return ""
    shown = shown_costs(study, found)
    plots["cost"] = cost_figure(study, shown)
    text = (
        "Device time of a seed's epochs, mean over seeds, against the metric with its 95% interval. Filled: every seed is done. "
        f"Open: not finished, with {study.metric} and the time so far, so it would move to the right."
    )
    if sum(one.front for one in found) > 1:
        text += " Dotted: the front; of the finished arms, none is both as cheap as one of these and better."
    if len(shown) < len(found):
        text += f" Drawn are {len(shown)} of {len(found)} arms: the front and the best."
    head = ["Arm", "Time of a seed", metric_title(study.report_metric), "Epoch", "Front"]
    rows = [
        [one.arm, time_text(one.seconds), value_text(study, one), str(one.epoch), "yes" if one.front else ""]
        for one in shown
    ]
    names = {one.arm for one in shown}
    arms = [arm for arm in study.arms if arm.name in names]
    key = keys(study, arms, symbols=True) if len(arms) <= MAX_CURVES else ""
    return section("Cost against accuracy", text, key + plot_box("cost", plots) + numbers(head, rows))
