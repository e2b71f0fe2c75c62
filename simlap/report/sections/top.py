"""The first screen: the study's name, its answer, the facts; and what is to be known before it is relied on."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from simlap.record.view import StudyView
from simlap.report.answer import Notice, Sentence
from simlap.report.claims import Judged
from simlap.report.page import section
from simlap.report.replayed import badge, badge_text
from simlap.report.sections.text import counted, duration, spoken
from simlap.report.verdicts import race_lead
from simlap.report.words import metric_title, rule_text

if TYPE_CHECKING:
    from simlap.report.build import Report

MAX_SENTENCES = 12
"""Further ones are folded away."""
_MAX_LINES, _MAX_LEVELS = 6, 8
_VERDICTS = {"better": "better", "worse": "worse", "same": "inconclusive", "open": "open"}
_CLAIMS = {"holds": "better", "fails": "worse", "undecided": "open"}


def masthead(study: StudyView) -> str:
    return f'<header><p class="kicker">Ablation study</p><h1>{escape(study.name)}</h1></header>'


def answer(report: Report) -> str:
    """Claims first, then the effects, then how they were come by, and the study's facts."""
    study, found = report.study, report.sentences
    parts = ["<h2>The answer</h2>"]
    if report.judged:
        parts += ['<ul class="answer">', *map(_claim, report.judged), "</ul>", "<h3>What each level does</h3>"]
    first, rest = _first(found)
    parts.append(_list(first) if found else '<p class="none">There is nothing to compare.</p>')
    if rest:
        kinds = (
            "none of them conclusive" if all(s.verdict in ("same", "open") for s in rest) else "in the study's order"
        )
        parts.append(f"<details><summary>{len(rest)} more, {kinds}</summary>{_list(rest)}</details>")
    lead = (
        f"What each level does against the baseline's level, at each combination of the other factors, in "
        f"{metric_title(study.report_metric)} at epoch {study.epochs}. {rule_text(study)} "
        "p-values are Holm-adjusted over all effects, intervals are not."
    )
    if study.race is not None:
        lead = race_lead(study, study.race)
    parts.append(_facts(study))
    if found:
        parts.append(f'<p class="lead">{escape(lead)}</p>')
    return f'<section id="answer">{"".join(parts)}</section>'


def _first(found: Sequence[Sentence]) -> tuple[list[Sentence], list[Sentence]]:
    """Of many, those that say that something is better or worse come first; else all, in the study's order."""
    if len(found) <= MAX_SENTENCES:
        return list(found), []
    ordered = sorted(found, key=lambda s: s.verdict in ("same", "open"))  # stable: else the study's order
    return ordered[:MAX_SENTENCES], ordered[MAX_SENTENCES:]


def _list(found: Sequence[Sentence]) -> str:
    items = "".join(
        f'<li><span class="chip {s.verdict}">{escape(s.label or _VERDICTS[s.verdict])}</span> '
        f"<span>{spoken(s.text)}</span></li>"
        for s in found
    )
    return f'<ul class="answer">{items}</ul>'


def _claim(one: Judged) -> str:
    chip = f'<span class="chip {_CLAIMS[one.verdict]}">{one.verdict}</span>'
    text = spoken(one.text.rstrip(".") + ".")
    return f"<li>{chip} <span>{text}<br><code>{escape(one.claim)}</code></span></li>"


def _facts(study: StudyView) -> str:
    cells = [cell for arm in study.arms for cell in arm.cells]
    planned, done = len(study.arms) * len(study.seeds), sum(cell.state == "done" for cell in cells)
    seconds = sum(cell.seconds for cell in cells)
    facts = [
        (f"{done}/{planned}", "runs done" if study.race is None else "runs done, of those that it may take"),
        (str(len(study.arms)), counted("arm", len(study.arms))),
        (str(len(study.seeds)), counted("seed", len(study.seeds))),
        (str(study.epochs), counted("epoch", study.epochs)),
        (study.scheduler, "scheduler"),
    ]
    if seconds > 0:
        facts.append((duration(seconds), "training time"))
    items = "".join(f"<li><b>{escape(value)}</b> {name}</li>" for value, name in facts)
    replay = ""
    if study.replay is not None:
        chip = "better" if study.replay.verdict == "equal" else "worse"
        text = escape(badge_text(study.replay))
        replay = f'<p class="lead"><span class="chip {chip}">{badge(study.replay)}</span> {text}</p>'
    what = " × ".join(f"{name} {{{_levels(levels)}}}" for name, levels in study.factors.items())
    return f'<ul class="facts">{items}</ul><p class="lead">{escape(what)}</p>{replay}'


def _levels(levels: Sequence[str]) -> str:
    if len(levels) <= _MAX_LEVELS:
        return ", ".join(levels)
    return f"{', '.join(levels[:2])}, …, {levels[-1]}: {len(levels)} levels"


def notices(found: Sequence[Notice]) -> str:
    if not found:
        return ""
    parts: list[str] = []
    for notice in found:
        lines = notice.detail.strip().splitlines()
        if notice.kind == "failure":
            lines = lines[-1:]  # the exception itself; the traceback stands under Failures
        items = f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
        if len(lines) > _MAX_LINES:
            items = f"<details><summary>{len(lines)} lines</summary>{items}</details>"
        parts.append(f'<div class="notice {notice.level}">{escape(notice.text)}{items}</div>')
    return section("Before you rely on it", "", "".join(parts))
