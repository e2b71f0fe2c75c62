"""The report as one self-contained HTML page: offline, light and dark, for desktop, phone and paper."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from simlap.record.view import StudyView
from simlap.report import figures
from simlap.report.answer import Notice, Sentence
from simlap.report.gate_study import gates_section
from simlap.report.page import document, plot_box, section
from simlap.report.replayed import badge, badge_text
from simlap.report.stats import Estimate
from simlap.report.tables import ArmRow, caption, headers
from simlap.report.verdicts import race_lead
from simlap.report.words import decimals_for, metric_title, rule_text, split_word, unit_of

if TYPE_CHECKING:
    from simlap.report.build import Report

_VERDICTS = {"better": "better", "worse": "worse", "same": "inconclusive", "open": "open"}
_DASHARRAYS = {"dash": "6 3", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "10 3", "longdashdot": "10 3 2 3"}

COLLAPSE_TEXT = (
    "A low rank or spread means that features collapse into few dimensions; a spread of 1 is an even one. "
    "Low alignment: classes are tight. Low uniformity: features fill the sphere."
)
GATES_TEXT = "Gates all near 0 or 1 do not filter."


def html_page(report: Report) -> str:
    """The whole page."""
    study = report.study
    plots: dict[str, go.Figure] = {}
    body = "".join(
        [
            _header(study),
            _answer(study, report.sentences),
            _claims(report),
            _notices(report.notices),
            _arms(study, report.rows),
            *(table.html() for table in report.tables),
            _forest(report, plots),
            _curves(study, plots),
            _effects(report, plots),
            _diagnostics(study, plots),
            gates_section(study),
            _failures(study),
            _reproduce(study),
        ]
    )
    return document(f"{study.name} · simlap report", body, plots)


def _header(study: StudyView) -> str:
    cells = [cell for arm in study.arms for cell in arm.cells]
    planned, done = len(study.arms) * len(study.seeds), sum(cell.state == "done" for cell in cells)
    seconds = sum(cell.seconds for cell in cells)
    facts = [
        (f"{done}/{planned}", "runs done" if study.race is None else "runs done, of those that it may take"),
        (str(len(study.arms)), "arms"),
        (str(len(study.seeds)), "seeds"),
        (str(study.epochs), "epochs"),
        (study.scheduler, "scheduler"),
    ]
    if seconds > 0:
        facts.append((_duration(seconds), "training time"))
    items = "".join(f"<li><b>{escape(value)}</b> {name}</li>" for value, name in facts)
    replay = ""
    if study.replay is not None:
        chip = "better" if study.replay.verdict == "equal" else "worse"
        text = escape(badge_text(study.replay))
        replay = f'<p class="lead"><span class="chip {chip}">{badge(study.replay)}</span> {text}</p>'
    what = " × ".join(f"{name} {{{', '.join(levels)}}}" for name, levels in study.factors.items())
    return (
        f'<header><p class="kicker">Ablation study</p><h1>{escape(study.name)}</h1>'
        f'<p class="lead">{escape(what)}</p><ul class="facts">{items}</ul>{replay}</header>'
    )


def _answer(study: StudyView, sentences: Iterable[Sentence]) -> str:
    items = "".join(
        f'<li><span class="chip {s.verdict}">{escape(s.label or _VERDICTS[s.verdict])}</span>'
        f"<span>{_unbroken(escape(s.text))}</span></li>"
        for s in sentences
    )
    lead = (
        f"What each level does against the baseline's level, at each combination of the other factors, in "
        f"{metric_title(study.report_metric)} at epoch {study.epochs}. {rule_text(study)} "
        "p-values are Holm-adjusted over all effects, intervals are not."
    )
    if study.race is not None:
        lead = race_lead(study, study.race)
    content = f'<ul class="answer">{items}</ul>' if items else '<p class="none">There is nothing to compare.</p>'
    return f'<section><h2>The answer</h2><p class="lead">{escape(lead)}</p>{content}</section>'


def _claims(report: Report) -> str:
    if not report.judged:
        return ""
    chips = {"holds": "better", "fails": "worse", "undecided": "open"}
    items = "".join(
        f'<li><span class="chip {chips[one.verdict]}">{one.verdict}</span>'
        f"<span><code>{escape(one.claim)}</code><br>{_unbroken(escape(one.text))}</span></li>"
        for one in report.judged
    )
    return section("Claims", "What the study file says that it is to show.", f'<ul class="answer">{items}</ul>')


def _notices(notices: list[Notice]) -> str:
    if not notices:
        return ""
    parts: list[str] = []
    for notice in notices:
        lines = notice.detail.strip().splitlines()
        if notice.kind == "failure":
            lines = lines[-1:]  # the exception itself; the traceback stands under Failures
        detail = f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
        parts.append(f'<div class="notice {notice.level}">{escape(notice.text)}{detail}</div>')
    return f"<section><h2>Before you rely on it</h2>{''.join(parts)}</section>"


def _arms(study: StudyView, rows: Iterable[ArmRow]) -> str:
    names = headers(study)
    numeric = (False, True, False, True, True, True, False)
    head = "".join(
        f"<th{_class('num' if n else '')}>{escape(name)}</th>" for name, n in zip(names, numeric, strict=True)
    )
    body = "".join(_arm(study, row, names) for row in rows)
    return (
        f'<section><h2>Arms</h2><table class="arms"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f'<p class="caption">{escape(caption(study))}</p></section>'
    )


def _arm(study: StudyView, row: ArmRow, names: list[str]) -> str:
    (at, *more), comparison = map(escape, row.at.split(", ", 1)), row.comparison
    at += "".join(f'<span class="more">{text}</span>' for text in more)
    if comparison is not None and comparison.paired is None:
        at = f'<span class="none">not yet: {escape(comparison.blocked or "")}</span>'
    elif comparison is not None and not comparison.final and comparison.values and comparison.reference_values:
        sides = (
            f"{_mean(comparison.metric, comparison.values)} vs {_mean(comparison.metric, comparison.reference_values)}"
        )
        at += f'<span class="more">{escape(sides)}</span>'
    none = '<span class="none">–</span>'
    difference = "" if row.is_baseline else escape(_minus(row.difference_text))
    status = f'<span class="chip {row.state}">{escape(row.status)}</span>'
    tag = '<span class="tag">baseline</span>' if row.is_baseline else ""
    fields = [
        (f"{row.done}/{row.planned}", "num"),
        (status, ""),
        (escape(row.final_text), "num"),
        (difference, "num"),
        (escape(row.p), "num"),
        (at, "at"),
    ]
    cells = "".join(
        f"<td data-label='{escape(name)}'{_class(kind)}{'' if text else ' data-empty'}><span>{text or none}</span></td>"
        for name, (text, kind) in zip(names[1:], fields, strict=True)
    )
    name = escape(row.arm).replace(",", ",<wbr>")
    return f'<tr{_class("baseline" if row.is_baseline else "")}><td class="arm">{name}{tag}</td>{cells}</tr>'


def _forest(report: Report, plots: dict[str, go.Figure]) -> str:
    if not any(c.paired is not None for c in report.comparisons.values()):
        return ""
    baseline = next(arm.name for arm in report.study.arms if arm.is_baseline)
    plots["forest"] = figures.forest(report.study, report.comparisons)
    text = (
        f"Paired differences to {baseline}, with 95% intervals. Filled: test at the end. "
        "Open: compared earlier, on validation, because not every seed of both arms is done."
    )
    if report.study.race is not None:
        text = (
            f"As of the look that decided, on {split_word(report.study.metric)} data, with intervals that hold over all looks "
            "and arms. Without one: given up at an earlier epoch."
        )
    return section("Difference to the baseline", text, plot_box("forest", plots))


def _curves(study: StudyView, plots: dict[str, go.Figure]) -> str:
    figure = figures.curves(study)
    if figure is None:
        return ""
    plots["curves"] = figure
    text = (
        f"{metric_title(study.metric).capitalize()}. Thick: mean over all planned seeds, with its 95% band. Thin: single seeds "
        "that went further than others of their arm, not averaged. ✕: a seed was stopped or failed. Click an arm to hide it."
    )
    return section("Learning curves", text, _keys(study) + plot_box("curves", plots))


def _effects(report: Report, plots: dict[str, go.Figure]) -> str:
    if not any(effect.comparison.paired is not None for effect in report.effects):
        return ""
    plots["effects"] = figures.effects_figure(report.study, report.effects)
    text = "One factor changed, all others held. Open symbols: compared before the end, on validation."
    return section("Effect of each factor", text, plot_box("effects", plots))


def _diagnostics(study: StudyView, plots: dict[str, go.Figure]) -> str:
    every = "Means over all planned seeds. "
    return small_curves(study, plots, "Collapse", every + COLLAPSE_TEXT, figures.COLLAPSE_METRICS) + small_curves(
        study, plots, "Gates", every + GATES_TEXT, figures.GATE_METRICS
    )


def small_curves(study: StudyView, plots: dict[str, go.Figure], title: str, text: str, metrics: Iterable[str]) -> str:
    """A section of small learning curves, without those that were never measured; empty where none was. Adds to `plots`."""
    parts: list[str] = []
    for metric in metrics:
        figure = figures.curves(study, metric, small=True)
        if figure is not None:
            name = f"small-{sum(other.startswith('small-') for other in plots)}"
            plots[name] = figure
            shown = metric_title(metric)
            parts.append(f"<div><h3>{escape(shown[:1].upper() + shown[1:])}</h3>{plot_box(name, plots)}</div>")
    return section(title, text, f'{_keys(study)}<div class="small">{"".join(parts)}</div>') if parts else ""


def _failures(study: StudyView) -> str:
    failed = [(arm, cell) for arm in study.arms for cell in arm.cells if cell.state == "failed"]
    if not failed:
        return ""
    parts = [
        f"<h3>{escape(arm.name)}, seed {cell.seed}</h3>"
        f'<p class="lead">{f"After epoch {cell.epoch}" if cell.epoch else "Before its first epoch"}'
        f" · cell <code>{escape(cell.cell_id)}</code></p><pre>{escape(cell.error or 'no error text')}</pre>"
        for arm, cell in failed
    ]
    return section(
        "Failures", "They are left alone; simlap ablate with --retry failed runs them again.", "".join(parts)
    )


def _reproduce(study: StudyView) -> str:
    parts: list[str] = []
    if study.command:
        parts.append(f"<pre>{escape(study.command)}</pre>")
    provenance = study.provenance or next((c.provenance for arm in study.arms for c in arm.cells if c.provenance), {})
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in _flat(provenance))
    if facts:
        parts.append(f"<dl>{facts}</dl>")
    if study.text:
        parts.append(f"<details open><summary>Study file</summary><pre>{escape(study.text)}</pre></details>")
    return section("How to reproduce", "", "".join(parts)) if parts else ""


def _keys(study: StudyView) -> str:
    """The key to colours and dashes; each arm is a button that hides its curves."""
    buttons: list[str] = []
    for name, style in figures.arm_styles(study).items():
        dash = f' stroke-dasharray="{_DASHARRAYS[style.dash]}"' if style.dash in _DASHARRAYS else ""
        line = f'<line x1="0" y1="5" x2="26" y2="5" stroke="{style.colour}" stroke-width="3"{dash}/>'
        swatch = f'<svg width="26" height="10" aria-hidden="true">{line}</svg>'
        shown = escape(name)
        buttons.append(f'<button type="button" data-arm="{shown}" aria-pressed="true">{swatch}{shown}</button>')
    return f'<div class="keys">{"".join(buttons)}</div>'


def _mean(metric: str, values: Estimate) -> str:
    unit = unit_of(metric)
    return unit.number(values.mean, decimals_for(unit, values.half_width, values.mean))


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _unbroken(text: str) -> str:
    """Numbers, their signs and units stay on one line."""
    text = re.sub(r"(?<=[(\[])-(?=\d)|(?<=, )-(?=[\d.]+\])", "−", text)
    return re.sub(r"(?<=\d) ± (?=\d)|(?<=\bp) (?==|&lt;)|(?<==|;) (?=\d)", lambda m: m[0].replace(" ", "\u00a0"), text)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested provenance as `git.commit` and text; empty values left out."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        elif value not in (None, "", []):
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            found.append((f"{prefix}{key}", text))
    return found
