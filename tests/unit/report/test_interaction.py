"""The heat maps: means over what they say, where all arms are, and the interaction's own p-value."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simlap.record.view import ArmView, StudyView
from simlap.report.build import build
from simlap.report.interaction import MAX_PAIRS, heat_map, interactions, where_text
from tests.unit.report import factory
from tests.unit.report.test_race import raced


def _finals(view: StudyView, arms: list[ArmView]) -> float:
    values = [cell.result[view.report_metric] for arm in arms for cell in arm.cells]
    return sum(values) / len(values)


def _three(**changes: object) -> StudyView:
    """Every arm twice, at two levels of a third factor."""
    view = factory.study()
    arms = [
        replace(arm, name=f"{arm.name},size={size}", levels={**arm.levels, "size": size}, is_baseline=arm.is_baseline and not i)
        for i, size in enumerate(("s", "l"))
        for arm in view.arms
    ]  # fmt: skip
    return replace(view, arms=arms, factors={**factory.FACTORS, "size": ["s", "l"]}, **changes)  # type: ignore[arg-type]


def test_of_finished_arms_the_report_metric() -> None:
    view = factory.study()
    report = build(view)
    found = interactions(view, report.details)
    assert found is not None
    assert (found.metric, found.epoch, found.whole) == ("test/probe_top1", 15, True)
    (pair,) = found.pairs
    assert (pair.factors, pair.rows, pair.columns) == (("filter", "pairs"), *map(list, factory.FACTORS.values()))
    for i, on in enumerate(pair.rows):
        for j, pairs in enumerate(pair.columns):
            arm = next(a for a in view.arms if a.levels == {"filter": on, "pairs": pairs})
            assert pair.means[i][j] == pytest.approx(_finals(view, [arm]))
    assert report.details is not None
    assert report.details.factors is not None
    term = next(t for t in report.details.factors.terms if t.factors == ("filter", "pairs"))
    assert pair.p_value == term.p_value
    figure = heat_map(view, found, pair)
    assert figure.data[0].z[0][0] == pytest.approx(100 * pair.means[0][0])
    assert figure.data[0].text[0][0] == f"{100 * pair.means[0][0]:.1f}"


def test_unfinished_arms_are_taken_where_all_of_them_were() -> None:
    view = factory.mixed()
    found = interactions(view, build(view).details)
    assert found is not None
    assert (found.metric, found.epoch, found.whole) == ("val/probe_top1", 5, False)
    cells = view.arms[5].cells
    assert found.pairs[0].means[1][2] == pytest.approx(sum(c.rows[4].metrics["val/probe_top1"] for c in cells) / 5)
    assert found.pairs[0].p_value is not None
    assert found.pairs[0].p_value < 0.001
    assert "at epoch 5, the highest that all planned seeds of all arms reached" in where_text(view, found)


def test_other_factors_are_averaged_over() -> None:
    view = _three()
    found = interactions(view, build(view).details)
    assert found is not None
    assert [p.factors for p in found.pairs] == [("filter", "pairs"), ("filter", "size"), ("pairs", "size")]
    arms = [a for a in view.arms if a.levels["filter"] == "off" and a.levels["size"] == "l"]
    assert len(arms) == 3
    assert found.pairs[1].means[1][1] == pytest.approx(_finals(view, arms))


def test_pairs_that_are_not_crossed_have_no_map() -> None:
    view = _three()
    # without one arm, two of the pairs are not balanced over the third factor, and one is not complete
    assert interactions(replace(view, arms=view.arms[:-1]), None) is None
    one_at_a_time = [a for a in factory.study().arms if "on" in a.levels["filter"] or a.levels["pairs"] == "arbitrary"]
    assert interactions(replace(factory.study(), arms=one_at_a_time), None) is None
    assert interactions(replace(view, compare="last", arms=factory.mixed().arms, factors=factory.FACTORS), None) is None


def test_a_race_tests_nothing_beside_its_looks() -> None:
    found = interactions(raced(), None)
    assert found is not None
    assert [pair.p_value for pair in found.pairs] == [None]
    assert "the seeds that the race gave them" in where_text(raced(), found)


def test_of_many_pairs_the_largest_interactions_are_shown() -> None:
    view = factory.study()
    more = {f"f{i}": ["a", "b"] for i in range(4)}
    arms = [
        replace(arm, name=f"{arm.name},{i}", levels={**arm.levels, **{f"f{j}": "ab"[i >> j & 1] for j in range(4)}})
        for i in range(16)
        for arm in view.arms
    ]
    view = replace(view, arms=arms, factors={**factory.FACTORS, **more})
    found = interactions(view, None)
    assert found is not None
    assert (len(found.pairs), found.left_out) == (MAX_PAIRS, 15 - MAX_PAIRS)
    assert found.pairs[0].factors == ("filter", "pairs")  # the only one that is there
    assert "10 pairs of 15" in where_text(view, found)
