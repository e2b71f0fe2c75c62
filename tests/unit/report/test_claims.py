"""Verdicts of claims on a synthetic study, on one that is not at its end, and on a race."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from scipy import stats

from simlap.record.view import CellState, DecisionView, RaceView, StudyView
from simlap.report.claims import all_hold, counts_text, judge
from simlap.report.junit import junit
from tests.unit.report import factory

OFF_WORSE = "filter=off < filter=on by 0.01 at pairs=distinct, p < 0.05"
ON, OFF = "filter=on,pairs=distinct", "filter=off,pairs=distinct"


def named(view: StudyView | None = None, **changes: Any) -> StudyView:
    return replace(view or factory.study(), **changes)


def test_a_claim_that_holds() -> None:
    (one,) = judge(named(), [OFF_WORSE])
    values = {a.name: [c.result["test/probe_top1"] for c in a.cells] for a in factory.study().arms}
    d = [x - y for x, y in zip(values[ON], values[OFF], strict=True)]
    assert (one.verdict, one.upper, one.lower, one.n, one.metric) == ("holds", ON, OFF, 5, "test/probe_top1")
    assert one.p_value == one.p_adjusted == pytest.approx(stats.ttest_1samp(d, 0.01, alternative="greater").pvalue)
    assert one.difference == pytest.approx(sum(d) / 5)
    assert one.text.startswith(f"{ON} is above {OFF} by 7.")
    assert one.text.endswith("points: by more than 1 point, p < 0.001 (test, paired over 5 seeds)")
    assert all_hold([one])


def test_verdicts_and_holm_over_the_file() -> None:
    claims = [
        OFF_WORSE,
        "filter=off > filter=on at pairs=distinct",
        "filter=off < filter=on by 0.3 at pairs=distinct",
        "filter=off ~ filter=on within 0.02 at pairs=identical",
        "filter=off ~ filter=on within 0.01 at pairs=distinct",
        "filter=off < filter=on by 0.0745 at pairs=distinct",
    ]
    found = judge(named(), claims)
    assert [one.verdict for one in found] == ["holds", "fails", "fails", "holds", "fails", "undecided"]
    assert counts_text(found) == "2 hold, 3 fail, 1 undecided"
    assert not all_hold(found)
    assert "not by more than 30 points, p < 0.001" in found[2].text
    assert "by less than 2 points, p = 0.00" in found[3].text
    assert "is not shown" in found[5].text
    assert "nor the opposite" in found[5].text
    for one in found:
        assert one.p_value is not None
        assert one.p_adjusted is not None
        assert one.p_value <= one.p_adjusted <= min(1, 6 * one.p_value) + 1e-12


def test_the_threshold_of_the_claim_counts() -> None:
    (one,) = judge(named(), [OFF_WORSE])
    assert one.p_value is not None
    below, above = (OFF_WORSE.replace("0.05", f"{one.p_value * factor:.12f}") for factor in (0.9, 1.1))
    assert [one.verdict for text in (below, above) for one in judge(named(), [text])] == ["undecided", "holds"]


def test_how_many_seeds_would_show_it() -> None:
    (one,) = judge(named(), [OFF_WORSE])
    assert one.difference is not None
    (near,) = judge(named(), [OFF_WORSE.replace("0.01", f"{one.difference - 0.0005:.5f}")])
    assert near.verdict == "undecided"
    assert "seeds would show it (80 % power), if the difference is as it is now" in near.text
    (beyond,) = judge(named(), [OFF_WORSE.replace("0.01", f"{one.difference + 0.0005:.5f}")])
    assert "no number of seeds would show it" in beyond.text


@pytest.mark.parametrize(
    ("state", "epochs", "reason"),
    [
        ("running", 9, f"{OFF} is not finished: 1 of 5 seeds are to come"),
        ("failed", 3, f"seed 2 of {OFF} failed"),
        ("stopped", 5, f"{OFF} was stopped early, by what would be tested here: put it under `protect`"),
        ("new", 0, f"{OFF} is not finished"),
    ],
)
def test_what_is_not_at_its_end_is_undecided(state: CellState, epochs: int, reason: str) -> None:
    view = factory.stop(factory.study(), OFF, {2: epochs}, state)
    one, other = judge(view, [OFF_WORSE, "filter=off < filter=on by 0.01"])
    assert (one.verdict, one.p_value) == ("undecided", None)
    assert reason in one.text
    assert other.verdict == "holds"
    assert other.p_value is not None
    assert other.p_adjusted == pytest.approx(2 * other.p_value)  # the family is the file's


def test_a_stopped_arm_is_judged_at_a_declared_epoch() -> None:
    view = factory.stop(factory.study(), OFF, dict.fromkeys(range(5), 5), "stopped")
    (one,) = judge(replace(view, compare=5), [OFF_WORSE])
    assert (one.verdict, one.at) == ("holds", "val @ epoch 5")
    (one,) = judge(replace(view, compare="last"), [OFF_WORSE])
    assert one.verdict == "undecided"
    (one,) = judge(replace(view, compare=6), [OFF_WORSE])
    assert one.verdict == "undecided"


def test_an_arm_that_diverged_is_not_judged_at_an_earlier_epoch() -> None:
    view = factory.study()
    old = next(cell for arm in view.arms if arm.name == OFF for cell in arm.cells if cell.seed == 1)
    rows = [
        replace(row, metrics={**row.metrics, view.metric: float("nan")}) if row.epoch > 4 else row for row in old.rows
    ]
    view = factory.with_cells(view, OFF, {1: replace(old, rows=rows, result={view.report_metric: float("nan")})})
    (one,) = judge(view, [OFF_WORSE])
    assert (one.verdict, one.p_value) == ("undecided", None)
    assert f"{OFF} has no finite value of test/probe_top1 at the end" in one.text


def test_less_is_less_whichever_is_better() -> None:
    claims = [OFF_WORSE, "filter=off > filter=on at pairs=distinct"]
    assert [one.verdict for one in judge(named(mode="min"), claims)] == ["holds", "fails"]


def test_arms_that_were_not_applied_yet_are_undecided() -> None:
    view = factory.study()
    (one,) = judge(replace(view, arms=[arm for arm in view.arms if arm.name != OFF]), [OFF_WORSE])
    assert one.verdict == "undecided"
    assert "not in the study as it was last applied" in one.text


def test_one_seed_decides_nothing() -> None:
    (one,) = judge(replace(factory.study(), seeds=[0]), [OFF_WORSE])
    assert (one.verdict, one.text) == ("undecided", "with one seed there is no test")


BASE, ARM = "filter=on,pairs=arbitrary", "filter=off,pairs=arbitrary"


def raced(verdict: str | None, difference: float = -0.03, half: float = 0.01, **fields: Any) -> StudyView:
    decision = DecisionView(
        **{
            "verdict": verdict, "reason": "race", "leaves": True, "seeds": 6, "epochs": None, "against": BASE,
            "difference": difference, "low": difference - half, "high": difference + half, "level": 0.02,
            "p_adjusted": 0.01, **fields,
        }
    )  # fmt: skip
    race = RaceView("baseline", 0.05, 0.02, [3, 5], True, {}, {} if verdict is None else {ARM: decision})
    return replace(factory.study(), scheduler="race", race=race)


@pytest.mark.parametrize(
    ("view", "claim", "verdict", "words"),
    [
        (raced("worse"), "filter=off < baseline", "holds", "the race found a difference over 6 seeds"),
        (raced("worse"), "filter=off > baseline", "fails", "the other way round"),
        (raced("worse"), "baseline > filter=off by 0.005", "holds", "of more than 0.005"),
        (raced("worse"), "baseline > filter=off by 0.017", "undecided", "does not tell whether it is more than 0.017"),
        (raced("worse"), "baseline > filter=off by 0.06", "fails", "of less than 0.06"),
        (raced("worse"), "baseline > filter=off, p < 0.01", "undecided", "the race decides at alpha 0.05"),
        (raced("worse"), "baseline ~ filter=off within 0.005", "fails", "of more than 0.005"),
        (raced("worse"), "baseline ~ filter=off within 0.03", "undecided", "not whether it lies within 0.03"),
        (raced("equivalent", 0.001), "baseline ~ filter=off within 0.02", "holds", "equivalent within 0.02"),
        (raced("equivalent", 0.001), "baseline ~ filter=off within 0.01", "undecided", "does not tell 0.01"),
        (raced("equivalent", 0.001), "filter=off > baseline by 0.02", "fails", "equivalent within 0.02"),
        (raced("equivalent", 0.001), "filter=off > baseline", "undecided", "does not tell 0"),
        (raced("futile"), "filter=off < baseline", "undecided", "the planned seeds do not decide it"),
        (raced("undecided", leaves=False), "filter=off < baseline", "undecided", "the race goes on"),
        (raced(None), "filter=off < baseline", "undecided", "the race has not decided about these two"),
        (named(scheduler="race"), "filter=off < baseline", "undecided", "the race has not begun"),
    ],
)
def test_a_race_is_judged_by_its_own_decisions(view: StudyView, claim: str, verdict: str, words: str) -> None:
    (one,) = judge(view, [claim])
    assert one.verdict == verdict
    assert words in one.text
    assert one.p_value is None  # nothing is tested anew


def test_the_interval_for_other_differences_is_wider_than_the_race_s_own() -> None:
    """Holm steps down where a difference is not 0; that says nothing of other differences."""
    (one,) = judge(raced("worse"), ["filter=off < baseline"])
    assert one.low is not None
    assert one.high is not None
    assert (one.high - one.low) / 2 > 0.012
    assert (one.high + one.low) / 2 == pytest.approx(0.03)


def test_two_arms_that_the_race_does_not_compare() -> None:
    view = raced("worse")
    assert view.race is not None
    decisions = {**view.race.decisions, OFF: view.race.decisions[ARM]}
    (one,) = judge(
        replace(view, race=replace(view.race, decisions=decisions)), ["filter=off < filter=off pairs=distinct"]
    )
    assert one.text == "the race compares arms with the baseline only, and these two not with each other"


def test_junit() -> None:
    claims = [
        OFF_WORSE,
        "filter=off > filter=on at pairs=distinct",
        "filter=off < filter=on by 0.0745 at pairs=distinct",
    ]
    judged = judge(named(), claims)
    suite = ElementTree.fromstring(junit("a & \x07b", judged).encode())[0]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("errors")) == (
        "a & b",
        "3",
        "1",
        "1",
    )
    assert [case.get("name") for case in suite] == claims
    assert [case[0].tag for case in suite] == ["system-out", "failure", "error"]
    assert suite[1][0].get("message") == judged[1].text
