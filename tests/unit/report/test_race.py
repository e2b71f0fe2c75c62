"""The report of a race: verdicts and numbers are those of its looks, and nothing is tested beside them."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from simlap.record.tracking.plan import plan_study
from simlap.record.view import DecisionView, RaceView, StudyView
from simlap.report import build, print_report, render, summary_of
from tests.unit.report import factory
from tests.unit.report.test_html import Page

BASELINE, BETTER, WORSE, GIVEN_UP, OPEN, SAME = (arm.name for arm in factory.study().arms)
_LOOK = {
    "against": BASELINE,
    "low": 0.01,
    "high": 0.05,
    "p_value": 0.001,
    "level": 0.02,
    "leaves": True,
    "epochs": None,
}


def raced(**changes: object) -> StudyView:
    """Three verdicts after three seeds, one arm given up at epoch 5, one undecided so far, one equivalent."""
    view = factory.study(scheduler="race")
    for arm in (BETTER, WORSE, SAME):
        view = factory.stop(view, arm, {3: 0, 4: 0}, "new")
    view = factory.stop(view, GIVEN_UP, {0: 5, 1: 5, 2: 5}, "stopped", reason="race")
    view = factory.stop(view, GIVEN_UP, {3: 0, 4: 0}, "new")

    def look(verdict: str, difference: float, seeds: int = 3, **fields: Any) -> DecisionView:
        reason = f"race: {difference:+.4g} against {BASELINE} after {seeds} seeds"
        return DecisionView(
            **{**_LOOK, "verdict": verdict, "difference": difference, "seeds": seeds, "reason": reason, **fields}
        )

    decisions = {
        BETTER: look("better", 0.03, p_adjusted=0.004),
        WORSE: look("worse", -0.03, low=-0.05, high=-0.01, p_adjusted=0.012),
        SAME: look("equivalent", 0.001, low=-0.002, high=0.004, p_adjusted=0.3),
        GIVEN_UP: look("futile", 0.002, epochs=5, low=None, high=None, p_value=None, level=None),
        OPEN: look("undecided", 0.01, 5, low=-0.01, high=0.03, leaves=False),
    }
    seeds = {name: decision.seeds for name, decision in decisions.items()} | {BASELINE: 5}
    return replace(view, race=RaceView("baseline", 0.05, 0.01, [3, 5], False, seeds, decisions), **changes)  # type: ignore[arg-type]


def test_rows_are_the_race_s() -> None:
    rows = {row.arm: row for row in build(raced()).rows}
    assert {name: row.status for name, row in rows.items()} == {
        BASELINE: "done", BETTER: "better", WORSE: "worse", SAME: "equivalent", OPEN: "open", GIVEN_UP: "futile",
    }  # fmt: skip
    assert (rows[BETTER].done, rows[BETTER].planned, rows[BETTER].p) == (3, 5, "0.004")
    assert rows[BETTER].difference_text == "+3.0 [+1.0, +5.0]", "the repeated interval"
    assert rows[BETTER].at == "val @ epoch 15, 3 seeds"
    assert (rows[GIVEN_UP].p, rows[GIVEN_UP].at) == ("", "val @ epoch 5, 3 seeds")
    cells = next(arm for arm in raced().arms if arm.name == BETTER).cells
    found = rows[BETTER].final
    assert found is not None
    assert found.n == 3, "of the seeds of the look that decided"
    assert found.mean == pytest.approx(np.mean([cell.result["test/probe_top1"] for cell in cells[:3]]))


def test_it_is_said_in_words_and_nothing_is_adjusted_beside_it() -> None:
    report = build(raced())
    said = {sentence.factor: (sentence.label, sentence.text) for sentence in report.sentences}
    assert said[BETTER][0] == "better"
    assert f"{BETTER} is better than {BASELINE} (+3.0 points [+1.0, +5.0], p = 0.004" in said[BETTER][1]
    assert said[GIVEN_UP][0] == "futile"
    assert f"{GIVEN_UP} cannot be decided with the planned seeds against {BASELINE}" in said[GIVEN_UP][1]
    assert "differences below 1 points do not matter" in said[SAME][1]
    assert "not decided yet" in said[OPEN][1]
    assert report.effects == []
    for form in ("html", "md", "latex"):
        text = render(report, form)
        text = Page(text).text if form == "html" else text
        assert "Holm" not in text
        assert "better" in text
    stream = io.StringIO()
    print_report(raced(), Console(file=stream, width=80))
    assert "Holm" not in stream.getvalue()
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    assert any("not over" in notice.text for notice in report.notices)


def test_machines_get_the_decisions_too() -> None:
    found = summary_of(build(raced()))
    assert found["race"]["arms"][WORSE]["verdict"] == "worse"
    assert found["comparisons"][WORSE]["p_adjusted"] == 0.012
    assert "p_value" not in found["arms"][WORSE], "the test metric is not tested"
    tags = {plan.name: plan.tags for plan in plan_study(raced(), {}) if plan.tags["simlap.kind"] == "arm"}
    assert tags[WORSE]["simlap.verdict"] == "worse"
    assert tags[WORSE]["simlap.seeds_used"] == "3"
    assert tags[WORSE]["simlap.reason"].startswith("race: -0.03 against")
    assert "simlap.verdict" not in tags[BASELINE]


def test_against_best_the_other_arm_is_named() -> None:
    view = raced()
    assert view.race is not None
    decisions = {
        **view.race.decisions, BASELINE: replace(view.race.decisions[WORSE], against=BETTER),
    }  # fmt: skip
    rows = build(replace(view, race=replace(view.race, against="best", decisions=decisions))).rows
    assert rows[0].status == "worse"
    assert rows[0].difference_text == "-3.0 [-5.0, -1.0]"
    assert rows[0].at.endswith(f"3 seeds, to {BETTER}")
