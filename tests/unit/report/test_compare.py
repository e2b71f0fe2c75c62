"""The rules of the fair comparison, one by one, and the simple effects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from simlap.record.view import ArmView, EpochRow, StudyView
from simlap.report.compare import common_epochs, compare, compare_to_baseline, simple_effects
from simlap.report.stats import holm
from tests.unit.report import factory

ON, OFF = "filter=on,pairs=distinct", "filter=off,pairs=distinct"
BASELINE = "filter=on,pairs=arbitrary"


def arm(view: StudyView, name: str) -> ArmView:
    return next(a for a in view.arms if a.name == name)


def values(view: StudyView, name: str, epoch: int | None = None) -> list[float]:
    """Test values, or validation values at an epoch, read plainly."""
    cells = arm(view, name).cells
    if epoch is None:
        return [c.result["test/probe_top1"] for c in cells]
    return [c.rows[epoch - 1].metrics["val/probe_top1"] for c in cells]


def test_finished_arms_are_compared_on_test_at_the_end() -> None:
    view = factory.study()
    found = compare(view, arm(view, OFF), arm(view, ON))
    x, y = values(view, OFF), values(view, ON)
    expected = stats.ttest_rel(x, y)
    assert (found.metric, found.epoch, found.final) == ("test/probe_top1", 15, True)
    assert found.paired is not None
    assert found.paired.mean == pytest.approx(np.mean(x) - np.mean(y))
    assert found.paired.p_value == pytest.approx(expected.pvalue)
    assert found.paired.low == pytest.approx(expected.confidence_interval().low)


def test_a_stopped_arm_is_compared_on_validation_where_all_seeds_were() -> None:
    view = factory.mixed()
    found = compare_to_baseline(view)[OFF]
    assert (found.metric, found.epoch, found.final) == ("val/probe_top1", 5, False)
    x, y = values(view, OFF, 5), values(view, BASELINE, 5)
    assert found.values is not None
    assert found.reference_values is not None
    assert found.paired is not None
    assert (found.values.n, found.reference_values.n, found.paired.n) == (5, 5, 5)
    assert found.values.mean == pytest.approx(np.mean(x))
    assert found.reference_values.mean == pytest.approx(np.mean(y))  # the baseline at epoch 5 too, not at its end
    assert found.paired.p_value == pytest.approx(stats.ttest_rel(x, y).pvalue)


def test_the_lower_side_decides_the_epoch() -> None:
    """Both sides unfinished: the epoch is the lowest of all ten cells, whichever side it is on."""
    view = factory.mixed()
    found = compare(view, arm(view, "filter=off,pairs=arbitrary"), arm(view, "filter=on,pairs=identical"))
    assert found.epoch == 9
    found = compare(view, arm(view, "filter=on,pairs=identical"), arm(view, BASELINE))
    assert (found.epoch, found.final) == (11, False)


def test_seeds_are_paired_by_number_not_by_position() -> None:
    view = factory.study()
    shuffled = replace(view, arms=[replace(a, cells=a.cells[::-1]) if a.name == OFF else a for a in view.arms])
    assert compare_to_baseline(shuffled) == compare_to_baseline(view)


def test_one_unfinished_seed_keeps_the_test_metric_of_the_others_out() -> None:
    view = factory.stop(factory.study(), OFF, {2: 14})
    found = compare_to_baseline(view)[OFF]
    assert (found.metric, found.epoch, found.final) == ("val/probe_top1", 14, False)


def test_a_result_counts_only_once_the_cell_is_done() -> None:
    """A cell that is running again still has the result of before."""
    view = factory.study()
    again = replace(arm(view, OFF).cells[2], state="running")
    found = compare_to_baseline(factory.with_cells(view, OFF, {2: again}))[OFF]
    assert (found.metric, found.final) == ("val/probe_top1", False)


@pytest.mark.parametrize(("state", "words"), [("failed", "failed before"), ("new", "has not finished an epoch yet")])
def test_a_seed_without_epochs_leaves_nothing_to_compare(state: str, words: str) -> None:
    view = factory.stop(factory.study(), OFF, {3: 0}, state)  # type: ignore[arg-type]
    found = compare_to_baseline(view)[OFF]
    assert found.paired is None
    assert found.epoch is None
    assert found.blocked is not None
    assert "seed 3" in found.blocked
    assert words in found.blocked


def test_a_planned_seed_without_a_cell_counts() -> None:
    view = replace(factory.study(), seeds=[0, 1, 2, 3, 4, 5])
    assert all(found.paired is None for found in compare_to_baseline(view).values())


def test_a_cell_of_an_unplanned_seed_does_not_count() -> None:
    view = factory.stop(factory.study(), OFF, {4: 2})
    found = compare_to_baseline(replace(view, seeds=[0, 1, 2, 3]))[OFF]
    assert found.final
    assert found.paired is not None
    assert found.paired.n == 4


def test_values_that_are_not_finite_are_not_compared() -> None:
    view = factory.study()
    cell = arm(view, OFF).cells[1]
    rows = [
        EpochRow(r.epoch, r.time_ms, r.metrics | ({"val/probe_top1": float("nan")} if r.epoch > 7 else {}))
        for r in cell.rows
    ]
    diverged = replace(cell, rows=rows, result={"test/probe_top1": float("nan")})
    found = compare_to_baseline(factory.with_cells(view, OFF, {1: diverged}))[OFF]
    assert (found.epoch, found.final) == (7, False)


@settings(max_examples=25)
@given(st.lists(st.integers(0, factory.EPOCHS), min_size=10, max_size=10))
def test_common_epoch_is_the_lowest_of_all_cells(epochs: list[int]) -> None:
    view = factory.stop(factory.study(), OFF, dict(enumerate(epochs[:5])), "running")
    view = factory.stop(view, ON, dict(enumerate(epochs[5:])), "running")
    found = common_epochs(view, [arm(view, OFF), arm(view, ON)], "val/probe_top1")
    assert found == list(range(1, min(epochs) + 1))
    assert compare(view, arm(view, OFF), arm(view, ON)).epoch == (min(epochs) or None)


def test_holm_over_the_arms() -> None:
    found = list(compare_to_baseline(factory.mixed()).values())
    tests = [c.paired for c in found if c.paired is not None]
    assert len(tests) == 5
    assert [t.p_adjusted for t in tests] == pytest.approx(holm([t.p_value for t in tests if t.p_value is not None]))


def test_arms_that_cannot_be_compared_are_not_in_the_family() -> None:
    view = factory.stop(factory.study(), OFF, {3: 0}, "failed")
    tests = [c.paired for c in compare_to_baseline(view).values() if c.paired is not None]
    assert len(tests) == 4
    smallest = min(tests, key=lambda t: t.p_value or 0.0)
    assert smallest.p_value is not None
    assert smallest.p_adjusted == pytest.approx(4 * smallest.p_value)


def test_simple_effects_of_a_factorial_study() -> None:
    effects = simple_effects(factory.study())
    found = {(e.factor, e.level, tuple(e.at.values())): (e.comparison.arm, e.comparison.reference) for e in effects}
    assert len(effects) == 3 + 4
    assert found["filter", "off", ("distinct",)] == (OFF, ON)
    assert found["pairs", "identical", ("off",)] == ("filter=off,pairs=identical", "filter=off,pairs=arbitrary")
    assert all(e.reference_level == {"filter": "on", "pairs": "arbitrary"}[e.factor] for e in effects)


def test_effects_need_both_arms() -> None:
    view = factory.study()
    kept = [a for a in view.arms if a.levels["filter"] == "on" or a.levels["pairs"] == "arbitrary"]
    effects = simple_effects(replace(view, arms=kept))
    assert [(e.factor, e.level, e.at["pairs" if e.factor == "filter" else "filter"]) for e in effects] == [
        ("filter", "off", "arbitrary"),
        ("pairs", "identical", "on"),
        ("pairs", "distinct", "on"),
    ]


def test_effects_where_a_factor_exists_in_some_arms_only() -> None:
    """`pairs` exists beside filter=on: switching the filter off is compared with the baseline's level of it."""
    view = factory.study()
    kept = [a for a in view.arms if a.levels["filter"] == "on"]
    off = replace(arm(view, "filter=off,pairs=arbitrary"), name="filter=off", levels={"filter": "off", "pairs": "–"})
    effects = simple_effects(replace(view, arms=[*kept, off]))
    assert [(e.factor, e.level, e.at, e.comparison.reference) for e in effects] == [
        ("filter", "off", {}, BASELINE),
        ("pairs", "identical", {"filter": "on"}, BASELINE),
        ("pairs", "distinct", {"filter": "on"}, BASELINE),
    ]
