"""The plots of differences and of training: forest, effects, learning curves, small curves, with their keys and switches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from simlap.record.view import ArmView, StudyView
from simlap.report import figures
from simlap.report.compare import common_epochs, values_at
from simlap.report.page import numbers, plot_box, section
from simlap.report.sections.text import capital
from simlap.report.shown import curve_arms, effect_rows, forest_rows
from simlap.report.spectrum import TEXT as SPECTRUM_TEXT
from simlap.report.spectrum import spectra, spectrum_table
from simlap.report.stats import estimate
from simlap.report.words import decimals_for, metric_title, split_word, unit_of

if TYPE_CHECKING:
    from simlap.report.build import Report

COLLAPSE_TEXT = (
    "A low rank or spread means that features collapse into few dimensions; a spread of 1 is an even one. "
    "Low alignment: classes are tight. Low uniformity: features fill the sphere."
)
GATES_TEXT = "Gates all near 0 or 1 do not filter."
_DASHARRAYS = {"dash": "6 3", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "10 3", "longdashdot": "10 3 2 3"}
_MAX_EPOCHS = 7
"""Columns of the table beside the learning curves."""


def forest(report: Report, plots: dict[str, go.Figure]) -> str:
    study = report.study
    shown, of = forest_rows(study, report.comparisons)
    if not shown:
        return ""
    baseline = next(arm.name for arm in study.arms if arm.is_baseline)
    plots["forest"] = figures.forest(study, report.comparisons)
    text = (
        f"Paired differences to {baseline}, with 95% intervals. Filled: test at the end. "
        "Open: compared earlier, on validation, because not every seed of both arms is done."
    )
    if study.race is not None:
        text = (
            f"As of the look that decided, on {split_word(study.metric)} data, with intervals that hold over all looks "
            "and arms. Without one: given up at an earlier epoch."
        )
    if len(shown) < of:
        text += f" Drawn are {len(shown)} of {of} arms: three quarters the best, the rest the worst. The table has all."
    return section("Difference to the baseline", text, plot_box("forest", plots))


def curves(study: StudyView, plots: dict[str, go.Figure]) -> str:
    figure = figures.curves(study)
    if figure is None:
        return ""
    plots["curves"] = figure
    text = (
        f"{capital(metric_title(study.metric))}. Thick: mean over all planned seeds, with its 95% band. Thin: single seeds "
        "that went further than others of their arm, not averaged. ✕: a seed was stopped or failed. Press an arm to hide it. "
        f"{_left_out(study)}"
    )
    tools = _switch("curves", "yaxis", "Value") if _is_positive(figure) else ""
    tools += _switch("curves", "xaxis", "Epochs") if study.epochs > 1 else ""
    content = f'<div class="tools">{tools}</div>{keys(study)}{plot_box("curves", plots)}{_table(study)}'
    return section("Learning curves", text.strip(), content)


def effects(report: Report, plots: dict[str, go.Figure]) -> str:
    shown, of = effect_rows(report.study, report.effects)
    if not shown:
        return ""
    plots["effects"] = figures.effects_figure(report.study, report.effects)
    text = "One factor changed, all others held. Open symbols: compared before the end, on validation."
    if len(shown) < of:
        text += f" Drawn are the {len(shown)} largest of {of} effects; the answer has all."
    return section("Effect of each factor", text, plot_box("effects", plots))


def collapse(study: StudyView, plots: dict[str, go.Figure]) -> str:
    """Collapse by epoch, and the spectrum of the features."""
    text = f"Means over all planned seeds. {COLLAPSE_TEXT} {_left_out(study)}".strip()
    by_epoch = small_curves(study, plots, "Collapse", text, figures.COLLAPSE_METRICS)
    figure = spectra(study)
    if figure is None:
        return by_epoch
    plots["spectrum"] = figure
    return by_epoch + section(
        "Spectrum", SPECTRUM_TEXT, keys(study) + plot_box("spectrum", plots) + spectrum_table(study)
    )


def gates(study: StudyView, plots: dict[str, go.Figure]) -> str:
    """How open the gates are, by epoch; empty where there are none."""
    text = f"Means over all planned seeds. {GATES_TEXT} {_left_out(study)}".strip()
    return small_curves(study, plots, "Gates", text, figures.GATE_METRICS)


def small_curves(study: StudyView, plots: dict[str, go.Figure], title: str, text: str, metrics: Iterable[str]) -> str:
    """A section of small learning curves, without those that were never measured; empty where none was. Adds to `plots`."""
    drawn = small_parts(study, plots, metrics)
    return section(title, text, drawn) if drawn else ""


def small_parts(study: StudyView, plots: dict[str, go.Figure], metrics: Iterable[str]) -> str:
    """The content of such a section."""
    parts: list[str] = []
    drawn: list[str] = []
    for metric in metrics:
        figure = figures.curves(study, metric, small=True)
        if figure is not None:
            drawn.append(metric)
            name = f"small-{sum(other.startswith('small-') for other in plots)}"
            plots[name] = figure
            parts.append(f"<div><h3>{escape(capital(metric_title(metric)))}</h3>{plot_box(name, plots)}</div>")
    return f'{keys(study)}<div class="small">{"".join(parts)}</div>{_last(study, drawn)}' if parts else ""


def keys(study: StudyView, arms: Sequence[ArmView] | None = None, *, symbols: bool = False) -> str:
    """The key to colours and dashes, or symbols; each arm is a button that hides it in all plots."""
    buttons: list[str] = []
    styles = figures.arm_styles(study)
    for arm in curve_arms(study) if arms is None else arms:
        style = styles[arm.name]
        dash = f' stroke-dasharray="{_DASHARRAYS[style.dash]}"' if style.dash in _DASHARRAYS else ""
        line = f'<line x1="0" y1="6" x2="26" y2="6" stroke="{style.colour}" stroke-width="3"{dash}/>'
        shape = f'<path d="{_PATHS[style.symbol]}" fill="{style.colour}"/>'
        width = 12 if symbols else 26
        swatch = f'<svg width="{width}" height="12" aria-hidden="true">{shape if symbols else line}</svg>'
        shown = escape(arm.name)
        buttons.append(f'<button type="button" data-arm="{shown}" aria-pressed="true">{swatch}{shown}</button>')
    return f'<div class="keys" role="group" aria-label="Arms that are drawn">{"".join(buttons)}</div>'


_PATHS = {
    "circle": "M6 1a5 5 0 1 1 0 10a5 5 0 1 1 0-10z",
    "diamond": "M6 0l6 6l-6 6l-6-6z",
    "square": "M1 1h10v10h-10z",
    "triangle-up": "M6 1l6 10h-12z",
    "cross": "M4 0h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "star": "M6 0l1.5 4.2h4.5l-3.6 2.7l1.4 4.3l-3.8-2.6l-3.8 2.6l1.4-4.3l-3.6-2.7h4.5z",
}
"""plotly's symbols, in a box of 12 by 12."""


def _switch(plot: str, axis: str, name: str) -> str:
    """Two buttons: a linear or a logarithmic axis."""
    buttons = "".join(
        f'<button type="button" data-plot="{plot}" data-axis="{axis}" data-type="{kind}" '
        f'aria-pressed="{"true" if kind == "linear" else "false"}">{kind}</button>'
        for kind in ("linear", "log")
    )
    return f'<span class="switch" role="group" aria-label="Axis: {name}"><span>{name}</span>{buttons}</span>'


def _is_positive(figure: go.Figure) -> bool:
    """Whether what is drawn as a mean has a logarithm."""
    means = [value for trace in figure.data if trace.name for value in trace.y]
    return bool(means) and min(means) > 0


def _left_out(study: StudyView) -> str:
    shown = len(curve_arms(study))
    if shown == len(study.arms):
        return ""
    return f"Drawn are the baseline and the {shown - 1} of {len(study.arms)} arms that came furthest, the best of those first."


def _last(study: StudyView, metrics: Sequence[str]) -> str:
    """The mean of every metric where the arm's seeds all came to, last."""
    rows = []
    for arm in curve_arms(study):
        texts = []
        for metric in metrics:
            epochs = common_epochs(study, [arm], metric)
            values = values_at(study, arm, metric, epochs[-1]) if epochs else None
            unit = unit_of(metric)
            found = estimate(values) if values is not None else None
            texts.append("" if found is None else unit.number(found.mean, decimals_for(unit, None, found.mean)))
        every = common_epochs(study, [arm], metrics[0])
        rows.append([arm.name, str(every[-1]) if every else "", *texts])
    return numbers(["Arm", "Epoch", *(capital(metric_title(metric)) for metric in metrics)], rows, "Last means")


def _table(study: StudyView) -> str:
    """The means at some epochs, for those who do not see the curves."""
    unit = unit_of(study.metric)
    by_arm = {arm.name: common_epochs(study, [arm], study.metric) for arm in curve_arms(study)}
    every = sorted({epoch for epochs in by_arm.values() for epoch in epochs})
    ends = {epochs[-1] for epochs in by_arm.values() if epochs}
    if len(every) > _MAX_EPOCHS:  # where arms end says most
        spread = {every[round(i * (len(every) - 1) / (_MAX_EPOCHS - 1))] for i in range(_MAX_EPOCHS)}
        every = sorted({every[0], *ends} if len(ends) >= _MAX_EPOCHS - 1 else spread | ends)[: 2 * _MAX_EPOCHS]
    rows = []
    for arm in study.arms:
        if arm.name not in by_arm:
            continue
        found = {e: estimate(v) for e in every if (v := values_at(study, arm, study.metric, e)) is not None}
        decimals = decimals_for(unit, max((one.half_width or 0.0 for one in found.values()), default=None))
        rows.append([arm.name, *(unit.number(found[e].mean, decimals) if e in found else "" for e in every)])
    return numbers(["Arm", *(f"epoch {e}" for e in every)], rows, "Means at some epochs")
