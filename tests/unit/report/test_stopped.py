"""Stopped arms: where, by which rule, and how they stood."""

from __future__ import annotations

from simlap.report import render
from simlap.report.stopped import rule_lead, stopped_arms
from tests.unit.report import factory
from tests.unit.report.test_html import Page
from tests.unit.report.test_race import GIVEN_UP, raced

ARM = "filter=off,pairs=distinct"


def _asha(cells: int) -> str:
    return f"asha: val/probe_top1 0.7912 at epoch 5 is not among the best 1/3 of {cells} cells"


def test_rule_and_standing() -> None:
    view = factory.stop(factory.study(), ARM, {1: 5}, reason=_asha(8))
    view = factory.stop(view, ARM, {3: 5}, reason=_asha(21))
    (arm,) = stopped_arms(view)
    assert (arm.arm, arm.of, [cell.seed for cell in arm.cells]) == (ARM, 5, [1, 3])
    assert {cell.why for cell in arm.cells} == {
        "at the rung of epoch 5 not among the best third of the runs that had got there"
    }
    assert [cell.among for cell in arm.cells] == [8, 21]
    every = sorted((c.rows[4].metrics["val/probe_top1"] for a in view.arms for c in a.cells), reverse=True)
    own = next(c for a in view.arms if a.name == ARM for c in a.cells if c.seed == 1).rows[4].metrics["val/probe_top1"]
    place = every.index(own) + 1
    assert arm.cells[0].standing.startswith(str(place))
    assert arm.cells[0].standing.endswith(" of 30 runs")
    assert arm.cells[0].value == f"{100 * own:.1f}"
    assert "6th of 6 arms; the baseline 88.7" in arm.summary
    page = Page(render(view, "html")).text
    assert "(from 8 to 21, as runs came in)" in page
    assert "2 of 5 seeds" in page
    assert "Never stopped, as they are protected: filter=on,pairs=arbitrary." in rule_lead(view)


def test_other_reasons_are_told_as_they_are() -> None:
    view = factory.stop(factory.study(), ARM, {0: 3}, reason="a rule of my own <b>")
    view = factory.stop(view, ARM, {1: 3})
    (arm,) = stopped_arms(view)
    assert [cell.why for cell in arm.cells] == ["a rule of my own <b>", "no reason was noted"]


def test_a_race_tells_what_it_decided() -> None:
    view = raced()
    view = factory.stop(view, GIVEN_UP, {0: 5}, reason="race: +0.002 against it after 3 seeds")
    found = {arm.arm: arm for arm in stopped_arms(view)}
    assert set(found) == {GIVEN_UP}
    assert found[GIVEN_UP].cells[0].why.startswith("cannot be decided with the planned seeds against")
    assert "leaves the race" in rule_lead(view)


def test_nothing_stopped_nothing_said() -> None:
    assert stopped_arms(factory.study()) == []
    assert "Stopped arms" not in render(factory.study(), "html")
