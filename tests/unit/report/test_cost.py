"""Cost against accuracy: seconds of a seed, and the arms that no other one beats."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simlap.record.view import ArmView, EpochRow, StudyView
from simlap.report.cost import ArmCost, cost_figure, costs, shown_costs, time_text
from simlap.report.shown import MAX_POINTS
from simlap.report.stats import estimate
from tests.unit.report import factory


def _priced(**seconds: float) -> StudyView:
    """Arms by name, with so many seconds an epoch; each is better by a point than the one before it."""
    arms = []
    for i, (name, one) in enumerate(seconds.items()):
        cells = []
        for seed in factory.SEEDS:
            cell = factory.cell("same", seed, 0.8)
            rows = [EpochRow(r.epoch, r.time_ms, {**r.metrics, "time/epoch_s": one}) for r in cell.rows]
            result = {"test/probe_top1": 0.8 + 0.01 * i + 0.001 * seed}
            cells.append(replace(cell, rows=rows, result=result))
        arms.append(ArmView(name, {"arm": name}, False, i == 0, cells))
    return factory.study(arms=arms, factors={"arm": list(seconds)})


def test_seconds_of_a_seed_and_the_front() -> None:
    found = costs(_priced(a=2.0, b=4.0, c=1.0, d=3.0))
    assert [one.seconds for one in found] == pytest.approx([30, 60, 15, 45])
    # c is cheaper and better than a and b; d is the best
    assert {one.arm for one in found if one.front} == {"c", "d"}
    assert all(one.finished for one in found)
    assert {one.arm for one in costs(replace(_priced(a=2.0, b=2.0), mode="min")) if one.front} == {"a"}


def test_unfinished_arms_are_open_and_on_no_front() -> None:
    view = factory.stop(_priced(a=2.0, b=1.0), "b", dict.fromkeys(factory.SEEDS, 5))
    a, b = costs(view)
    assert (a.finished, b.finished, b.epoch) == (True, False, 5)
    assert b.seconds == pytest.approx(5)
    assert (a.front, b.front) == (True, False)
    mean = sum(c.rows[4].metrics["val/probe_top1"] for c in view.arms[1].cells) / 5
    assert b.value.mean == pytest.approx(mean)
    points = {t.meta: t for t in cost_figure(view, [a, b]).data if t.meta}
    assert points["b"].marker.symbol.endswith("-open")
    assert points["a"].x[0] == pytest.approx(30)
    assert points["a"].error_y.array[0] == pytest.approx(100 * (a.value.half_width or 0.0))


def test_another_quantity_cannot_stand_beside_the_report_s() -> None:
    view = factory.stop(_priced(a=2.0, b=1.0), "b", dict.fromkeys(factory.SEEDS, 5))
    assert [one.arm for one in costs(replace(view, metric="train/loss", mode="min"))] == ["a"]


def test_without_times_there_is_nothing() -> None:
    view = _priced(a=0.0)
    assert costs(view) == []


def test_of_very_many_the_front_and_the_best_are_drawn() -> None:
    found = [
        ArmCost(str(i), 1.0 + i, estimate([i / 1000]), 15, finished=True, front=i == 0) for i in range(MAX_POINTS + 5)
    ]
    kept = shown_costs(factory.study(), found)
    assert len(kept) == MAX_POINTS
    assert kept[0].arm == "0"
    assert {one.arm for one in found} - {one.arm for one in kept} == {"1", "2", "3", "4", "5"}


def test_times_are_read_easily() -> None:
    assert [time_text(s) for s in (0.5, 59.0, 150.0, 9000.0)] == ["0.5 s", "59 s", "2.5 min", "2.5 h"]
