"""What became of runs that did not end as they should, and how the study is made again."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from simlap.record.view import StudyView
from simlap.report.circumstances import DIRTY, Fact, commit_of, facts_of, mixed_text
from simlap.report.page import section
from simlap.report.sections.text import listed
from simlap.report.stopped import StoppedArm, StoppedCell, rule_lead, stopped_arms

if TYPE_CHECKING:
    from simlap.report.build import Report

MAX_FAILURES = 30
"""Whose tracebacks are shown."""


def stopped(report: Report) -> str:
    """Empty where no run was stopped."""
    found = stopped_arms(report.study)
    if not found:
        return ""
    head = "".join(f'<th scope="col">{text}</th>' for text in ("Arm", "Stopped", "Why", "Where it stood"))
    body = "".join(map(_stopped_arm, found))
    table = f'<table class="arms"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return section("Stopped arms, and why", rule_lead(report.study), table)


def _stopped_arm(arm: StoppedArm) -> str:
    epochs = sorted({cell.epoch for cell in arm.cells})
    seeds = ", ".join(str(cell.seed) for cell in arm.cells)
    where = f"epoch{'s' * (len(epochs) > 1)} {', '.join(map(str, epochs))}"
    count = f"{len(arm.cells)} of {arm.of} seeds" if len(arm.cells) < arm.of else "all seeds"
    rules: dict[str, list[StoppedCell]] = {}
    for cell in arm.cells:
        rules.setdefault(cell.why, []).append(cell)
    lines = {f"{why}{_among(cells)}": [str(cell.seed) for cell in cells] for why, cells in rules.items()}
    if len(lines) == 1:
        why = escape(next(iter(lines)))
    else:
        items = "".join(
            f"<li>seed{'s' * (len(s) > 1)} {', '.join(s)}: {escape(text)}</li>" for text, s in lines.items()
        )
        why = f'<ul class="plain">{items}</ul>'
    standings = [f"seed {cell.seed}: {cell.value}, {cell.standing}" for cell in arm.cells if cell.standing]
    own = f'<span class="more">{escape("; ".join(standings))}</span>' if standings else ""
    more = f'<span class="more">seed{"s" * (len(arm.cells) > 1)} {seeds}</span>' if len(arm.cells) < arm.of else ""
    return (
        f'<tr><th scope="row" class="arm">{escape(arm.arm)}</th>'
        f'<td class="where" data-label="Stopped"><span>{where}<span class="more">{count}</span>{more}</span></td>'
        f'<td class="long" data-label="Why">{why}</td>'
        f'<td class="long" data-label="Where it stood">{escape(arm.summary)}{own}</td></tr>'
    )


def _among(cells: Sequence[StoppedCell]) -> str:
    """` (3 to 28)`: how many runs had got there by then."""
    known = [cell.among for cell in cells if cell.among is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    return f" ({low})" if low == high else f" (from {low} to {high}, as runs came in)"


def failures(study: StudyView) -> str:
    failed = [(arm, cell) for arm in study.arms for cell in arm.cells if cell.state == "failed"]
    if not failed:
        return ""
    parts = [
        f"<h3>{escape(arm.name)}, seed {cell.seed}</h3>"
        f'<p class="lead">{f"After epoch {cell.epoch}" if cell.epoch else "Before its first epoch"}'
        f" · cell <code>{escape(cell.cell_id)}</code></p><pre>{escape(cell.error or 'no error text')}</pre>"
        for arm, cell in failed[:MAX_FAILURES]
    ]
    if len(failed) > MAX_FAILURES:
        rest = listed([f"{arm.name}, seed {cell.seed}" for arm, cell in failed[MAX_FAILURES:]], 20)
        parts.append(f"<p>{len(failed) - MAX_FAILURES} more failed: {escape(rest)}.</p>")
    return section(
        "Failures", "They are left alone; simlap ablate with --retry failed runs them again.", "".join(parts)
    )


def reproduce(study: StudyView) -> str:
    """Commands, versions, state of the code, fingerprint of the data; and where the runs differ in that."""
    facts = facts_of(study)
    parts: list[str] = []
    if study.command:
        commit = commit_of(facts)
        lines = [f"git checkout {commit}"] if commit is not None else []
        lines += [
            study.command,
            f"simlap verify {_study_words(study)}    # trains a random run anew and compares its numbers",
        ]
        parts.append(f"<pre>{escape(chr(10).join(lines))}</pre>")
    if any(fact.key == "git.dirty" and DIRTY in fact.values for fact in facts):
        text = "The code had changes that are in no commit: the commit alone does not bring it back."
        parts.append(f'<div class="notice warning">{text}</div>')
    if mixed := mixed_text(facts, study):
        items = "".join(f"<li>{escape(line)}</li>" for line in mixed)
        text = "The runs were not all made under the same circumstances, and may differ by that."
        parts.append(f'<div class="notice warning">{text}<ul>{items}</ul></div>')
    shown = [f"<dt>{escape(fact.name)}</dt><dd>{_values(fact)}</dd>" for fact in facts]
    if shown:
        parts.append(f"<dl>{''.join(shown)}</dl>")
    if study.text:
        parts.append(f"<details open><summary>Study file</summary><pre>{escape(study.text)}</pre></details>")
    return section("How to reproduce", "", "".join(parts)) if parts else ""


def _study_words(study: StudyView) -> str:
    """The study's name for another command, with the storage that it lies in."""
    words = study.command.split()
    at = words.index("--storage") if "--storage" in words else len(words)
    return " ".join([study.name, *words[at : at + 2]])


def _values(fact: Fact) -> str:
    if not fact.mixed:
        return escape(next(iter(fact.values)))
    return "<br>".join(f"{escape(value)} ({count} run{'s' * (count != 1)})" for value, count in fact.values.items())
