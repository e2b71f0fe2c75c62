"""The table of arms: in the order of the study, until the page's script sorts it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from simlap.record.view import StudyView
from simlap.report.page import section, tall
from simlap.report.sections.text import class_of, minus
from simlap.report.stats import Estimate
from simlap.report.tables import ArmRow, caption, headers
from simlap.report.words import decimals_for, unit_of

_NUMERIC = (False, True, False, True, True, True, False)


def arms(study: StudyView, rows: Sequence[ArmRow]) -> str:
    names = headers(study)
    head = "".join(
        f'<th scope="col"{class_of("num" if number else "")}>{escape(name)}</th>'
        for name, number in zip(names, _NUMERIC, strict=True)
    )
    body = "".join(_arm(row, names) for row in rows)
    table = f'<table class="arms" data-sortable><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return section("Arms", "", f'{tall(table, len(rows), "Arms")}<p class="caption">{escape(caption(study))}</p>')


def _arm(row: ArmRow, names: Sequence[str]) -> str:
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
    test = comparison.paired if comparison is not None else None
    p_value = test.p_adjusted if test is not None else None
    fields = [
        (f"{row.done}/{row.planned}", "num", str(row.done)),
        (f'<span class="chip {row.state}">{escape(row.status)}</span>', "status", row.status),
        (escape(row.final_text), "num", _number(row.final.mean if row.final is not None else None)),
        (
            "" if row.is_baseline else escape(minus(row.difference_text)),
            "num",
            _number(test.mean if test is not None and row.difference_text else None),
        ),
        (escape(row.p), "num", _number(p_value)),
        (at, "at", row.at),
    ]
    cells = "".join(
        f'<td data-label="{escape(name)}" data-value="{escape(value)}"{class_of(kind)}{"" if text else " data-empty"}>'
        f"<span>{text or none}</span></td>"
        for name, (text, kind, value) in zip(names[1:], fields, strict=True)
    )
    tag = '<span class="tag">baseline</span>' if row.is_baseline else ""
    name = escape(row.arm).replace(",", ",<wbr>")
    first = f'<th scope="row" class="arm" data-value="{escape(row.arm)}">{name}{tag}</th>'
    return f"<tr{class_of('baseline' if row.is_baseline else '')}>{first}{cells}</tr>"


def _number(value: float | None) -> str:
    """That the column is sorted by; empty stands last."""
    return "" if value is None else f"{value:.9g}"


def _mean(metric: str, values: Estimate) -> str:
    unit = unit_of(metric)
    return unit.number(values.mean, decimals_for(unit, values.half_width, values.mean))
