"""Which of many arms are drawn."""

from __future__ import annotations

from dataclasses import replace

from simlap.record.view import ArmView, StudyView
from simlap.report import render
from simlap.report.build import build
from simlap.report.figures import curves, forest
from simlap.report.shown import MAX_CURVES, MAX_INTERVALS, curve_arms, effect_rows, forest_rows
from tests.unit.report import factory
from tests.unit.report.test_html import Page


def _many(count: int = 60) -> StudyView:
    """Arms by number, each worse than the one before; the last is the baseline, and the first ten stopped at epoch 3."""
    arms = []
    for i in range(count):
        name = f"arm {i:03d}"
        cells = [factory.cell(name, seed, 0.95 - 0.01 * i, 6) for seed in (0, 1)]
        arms.append(ArmView(name, {"arm": str(i)}, False, i == count - 1, cells))
    view = factory.study(
        arms=arms, factors={"arm": [str(i) for i in range(count)]}, seeds=[0, 1], epochs=6, claims=[], compare="common"
    )
    for i in range(10):
        view = factory.stop(view, f"arm {i:03d}", {0: 3, 1: 3})
    return view


def test_few_are_all_drawn() -> None:
    view = factory.mixed()
    assert curve_arms(view) == view.arms
    report = build(view)
    assert len(forest_rows(view, report.comparisons)[0]) == 5
    assert "Drawn are" not in render(report, "html")


def test_of_many_the_baseline_and_those_that_came_furthest() -> None:
    view = _many()
    names = [arm.name for arm in curve_arms(view)]
    assert names == [f"arm {i:03d}" for i in range(10, 10 + MAX_CURVES - 1)] + ["arm 059"]
    figure = curves(view)
    assert figure is not None
    assert {t.legendgroup for t in figure.data} == set(names)


def test_of_many_differences_the_best_and_the_worst() -> None:
    view = _many()
    report = build(view)
    shown, of = forest_rows(view, report.comparisons)
    assert (len(shown), of) == (MAX_INTERVALS, 59)
    assert len(forest(view, report.comparisons).data) == MAX_INTERVALS
    gains = {c.arm: c.paired.mean for c in report.comparisons.values() if c.paired is not None}
    order = sorted(gains, key=lambda arm: gains[arm], reverse=True)
    assert {c.arm for c in shown} == {*order[:18], *order[-6:]}
    effects, of = effect_rows(view, report.effects)
    assert (len(effects), of) == (MAX_INTERVALS, 59)
    page = Page(render(report, "html"))
    assert f"Drawn are {MAX_INTERVALS} of 59 arms" in page.text
    assert f"Drawn are the baseline and the {MAX_CURVES - 1} of 60 arms" in page.text
    assert (
        sum(t == "button" and a.get("data-arm") == "arm 020" for t, a in page.tags) == 3
    )  # curves, and two of gates and ranks
    assert page.text.count("arm 059") >= 2  # the table holds them all
    assert "47 more, in the study's order" in page.text or "47 more, none of them conclusive" in page.text


def test_less_is_better_turns_it_round() -> None:
    view = replace(_many(), mode="min", scheduler="none")
    names = [arm.name for arm in curve_arms(view)]
    assert names == [f"arm {i:03d}" for i in range(60 - MAX_CURVES, 60)]
