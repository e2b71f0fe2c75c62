"""What stands beside the t tests, in numbers and in every rendering."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from simlap.record.view import ArmView, CellView, StudyView
from simlap.report import build, print_report, render, summary_of
from simlap.report.compare import compare_to_baseline
from simlap.report.detail import details
from simlap.report.inference import bca, sign_flip
from tests.unit.report import factory

REPORT = "test/probe_top1"


def study_of(means: dict[str, float], seeds: int = 5, noise: float = 0.002, **changes: Any) -> StudyView:
    """A finished study of one factor whose levels are the names of its arms; the first is the baseline."""
    rng = np.random.default_rng(4)
    shared = 0.01 * rng.standard_normal(seeds)
    arms = [
        ArmView(
            f"f={name}", {"f": name}, False, i == 0,
            [
                CellView(f"{name}-{s}", s, "done", result={REPORT: mean + float(shared[s] + noise * rng.standard_normal())})
                for s in range(seeds)
            ],
        )
        for i, (name, mean) in enumerate(means.items())
    ]  # fmt: skip
    base = StudyView("s", "val/probe_top1", "max", "test/probe_top1", 5, [*range(seeds)], {"f": [*means]}, arms)
    return replace(base, **changes)


def of(view: StudyView) -> Any:
    return details(view, compare_to_baseline(view))


FOUR = {"a": 0.90, "b": 0.95, "c": 0.9501, "d": 0.80}


def test_ranks_are_shared_by_arms_that_cannot_be_told_apart() -> None:
    assert {one.arm: one.rank for one in of(study_of(FOUR)).arms} == {"f=a": 3, "f=b": 1, "f=c": 1, "f=d": 4}
    lower = of(study_of(FOUR, mode="min"))
    assert {one.arm: one.rank for one in lower.arms} == {"f=a": 2, "f=b": 3, "f=c": 3, "f=d": 1}


def test_every_two_arms_are_one_family() -> None:
    found = of(study_of(FOUR))
    assert len(found.pairs) == 6
    for pair in found.pairs:
        assert pair.test.p_value <= pair.test.p_adjusted <= min(1, 6 * pair.test.p_value) + 1e-12


def test_an_arm_that_is_not_finished_has_no_rank() -> None:
    view = factory.mixed()
    ranks = {one.arm: one.rank for one in of(view).arms}
    assert ranks["filter=off,pairs=distinct"] is None
    assert ranks["filter=on,pairs=arbitrary"] is not None


def test_intervals_and_tests_are_those_of_the_differences() -> None:
    view = study_of(FOUR, seeds=8, margin=0.04)
    found = {one.arm: one for one in of(view).arms}
    values = {arm.name: [c.result["test/probe_top1"] for c in arm.cells] for arm in view.arms}
    d = [x - y for x, y in zip(values["f=b"], values["f=a"], strict=True)]
    assert found["f=b"].difference_bca == bca(d)
    assert found["f=b"].mean_bca == bca(values["f=b"])
    assert found["f=b"].sign_flip == pytest.approx(min(1, 3 * sign_flip(d)))  # type: ignore[operator]
    assert found["f=a"].difference_bca is None
    assert found["f=a"].equivalence is None
    assert found["f=b"].equivalence > 0.9
    assert found["f=b"].more_seeds is None
    same = {one.arm: one for one in of(study_of({"a": 0.9, "b": 0.9}, margin=0.01)).arms}["f=b"]
    assert same.equivalence < 0.05
    assert same.sign_flip is None  # five seeds
    assert same.more_seeds is None or same.more_seeds > 0


def test_how_many_more_seeds() -> None:
    view = study_of({"a": 0.9, "b": 0.905}, noise=0.006)
    comparison = compare_to_baseline(view)["f=b"].paired
    assert comparison is not None
    assert not comparison.significant
    more = of(view).arms[1].more_seeds
    effect = abs(comparison.mean) / np.std(comparison.differences, ddof=1)
    n = 5 + more
    power = stats.nct.sf(stats.t.isf(0.025, n - 1), n - 1, effect * n**0.5)
    assert power == pytest.approx(0.8, abs=0.05)


def test_factors_of_a_factorial_study() -> None:
    found = of(factory.study())
    assert [term.name for term in found.factors.terms] == ["filter", "pairs", "filter × pairs"]
    assert (found.factors.method, found.factor_arms) == ("anova", 6)
    assert max(term.p_value for term in found.factors.terms) < 0.01


def test_failed_cells_make_a_mixed_model_and_stopped_arms_are_left_out() -> None:
    failed = of(factory.stop(factory.study(), "filter=off,pairs=arbitrary", {3: 9}, "failed"))
    assert (failed.factors.method, failed.factor_arms) == ("mixed", 6)
    stopped = of(factory.stop(factory.study(), "filter=off,pairs=arbitrary", {3: 9}))
    assert (stopped.factors.method, stopped.factor_arms) == ("anova", 5)


def test_importance_of_sampled_factors_only() -> None:
    levels = {f"{v:.4g}": 0.9 - 0.1 * abs(np.log10(v) + 2) for v in np.geomspace(1e-4, 1, 24)}
    view = study_of(levels, seeds=2)
    assert of(view).importance is None
    assert of(replace(view, sampled={"f": "log"})).importance == {"f": 1.0}
    few = study_of(dict(list(levels.items())[:19]), seeds=2, sampled={"f": "log"})
    assert of(few).importance is None


def test_every_rendering_has_the_tables() -> None:
    report = build(factory.study(margin=0.01))
    assert [table.title for table in report.tables] == ["Beside the t test", "Main effects and interactions"]
    told = io.StringIO()
    print_report(factory.study(margin=0.01), Console(file=told, width=160))
    for text in (render(report, "md"), render(report, "html"), told.getvalue()):
        for words in ("Beside the t test", "Main effects and interactions", "filter × pairs", "seeds as blocks"):
            assert words in text
    assert "covers in about 84% of studies only" in render(report, "md")
    summary = json.loads(json.dumps(summary_of(report), allow_nan=False))
    assert len(summary["details"]["pairs"]) == 15
    assert summary["details"]["arms"]["filter=off,pairs=distinct"]["effect_size"] < -3
    assert [term["term"] for term in summary["details"]["factors"]["terms"]][2] == ["filter", "pairs"]
    assert summary["compare"] == "common"
    assert summary["claims"][0]["verdict"] == "holds"


def test_claims_are_in_every_rendering() -> None:
    view = factory.study(claims=["filter=off > filter=on at pairs=distinct"])
    told = io.StringIO()
    print_report(view, Console(file=told, width=300))
    assert "Claims: 1 fails" in told.getvalue()
    assert (
        "**fails**: `filter=off > filter=on at pairs=distinct`: filter=off,pairs=distinct is below filter=on,pairs=distinct by 7."
        in render(view, "md")
    )
    assert "filter=off &gt; filter=on at pairs=distinct" in render(view, "html")


def test_many_arms_are_not_resampled() -> None:
    """And a factor of so many levels is no model."""
    found = of(study_of({f"{i}": 0.5 + 0.001 * i for i in range(300)}, seeds=8))
    assert {(one.mean_bca, one.difference_bca, one.sign_flip, one.more_seeds, one.rank) for one in found.arms} == {
        (None,) * 5
    }
    assert found.arms[1].effect_size is not None
    assert (found.factors, found.pairs) == (None, [])


def test_a_study_without_anything_to_say_has_no_tables() -> None:
    view = study_of({"a": 0.9, "b": 0.95}, seeds=1)
    assert build(view).tables == []


def test_a_warning_where_differences_are_not_normal() -> None:
    view = study_of({"a": 0.9, "b": 0.9}, seeds=12)
    cells = view.arms[1].cells
    far = replace(cells[3], result={"test/probe_top1": 0.2})
    view = replace(view, arms=[view.arms[0], replace(view.arms[1], cells=[*cells[:3], far, *cells[4:]])])
    (told,) = [n for n in build(view).notices if "not normally distributed" in n.text]
    assert told.level == "warning"
    assert told.detail == "f=b: Shapiro-Wilk p < 0.001"


@pytest.mark.parametrize(
    ("rule", "words", "at"),
    [
        (
            "last",
            "Only arms that finished with every seed are compared, at the end, as the study file declares.",
            "test",
        ),
        (4, "All arms are compared on val/probe_top1 at epoch 4, as the study file declares.", "val @ epoch 4"),
        ("best_so_far", "the best of several noisy values is too high", "val best ≤ epoch 5"),
        ("common", "at the highest epoch all planned seeds of both reached", "val @ epoch 5"),
    ],
)
def test_the_declared_rule_is_said_in_every_rendering(rule: Any, words: str, at: str) -> None:
    view = replace(factory.mixed(), compare=rule)
    report = build(view)
    told = io.StringIO()
    print_report(view, Console(file=told, width=400))
    for text in (render(report, "md"), render(report, "html"), render(report, "latex"), told.getvalue()):
        assert words in text.replace("\\_", "_")
    row = next(row for row in report.rows if row.arm == "filter=off,pairs=distinct")
    assert row.at == ("" if rule == "last" else at)
    assert summary_of(report)["compare"] == ({"epoch": 4} if rule == 4 else rule)


def test_best_so_far_takes_each_run_s_best_up_to_the_common_epoch() -> None:
    view = replace(factory.mixed(), compare="best_so_far")
    found = compare_to_baseline(view)["filter=off,pairs=distinct"]
    sides = []
    for name in ("filter=off,pairs=distinct", "filter=on,pairs=arbitrary"):
        cells = next(arm for arm in view.arms if arm.name == name).cells
        sides.append(np.mean([max(row.metrics["val/probe_top1"] for row in c.rows[:5]) for c in cells]))
    assert found.paired is not None
    assert found.paired.mean == pytest.approx(sides[0] - sides[1])
    worst = compare_to_baseline(replace(view, mode="min"))["filter=off,pairs=distinct"].paired
    assert worst is not None
    assert worst.mean != found.paired.mean


def test_a_declared_epoch_that_was_not_reached() -> None:
    found = compare_to_baseline(replace(factory.mixed(), compare=6))["filter=off,pairs=distinct"]
    assert (found.paired, found.blocked) == (None, "seed 0 of filter=off,pairs=distinct has not reached epoch 6")
    found = compare_to_baseline(replace(factory.mixed(), compare="last"))["filter=off,pairs=distinct"]
    assert found.blocked == "seed 0 of filter=off,pairs=distinct is not at its end"


def test_sentences_say_where_a_declared_comparison_was_made() -> None:
    texts = [one.text for one in build(replace(factory.mixed(), compare=4)).sentences]
    assert any("With pairs=distinct, compared at epoch 4 on validation: filter off is worse" in text for text in texts)
    texts = [one.text for one in build(replace(factory.study(), compare="best_so_far")).sentences]
    assert any("compared by the best value up to epoch 15 on validation: filter off" in text for text in texts)


def test_of_an_accuracy_more_is_better_where_a_loss_decides() -> None:
    view = study_of({"a": 0.5, "b": 0.6, "c": 0.4}, metric="train/loss", mode="min", margin=0.01)
    report = build(view)
    assert {s.text.split(" than")[0]: s.verdict for s in report.sentences} == {
        "F b is better": "better", "F c is worse": "worse",
    }  # fmt: skip
    assert report.details is not None
    assert {one.arm: one.rank for one in report.details.arms} == {"f=a": 2, "f=b": 1, "f=c": 3}


def test_a_margin_is_not_held_against_another_quantity() -> None:
    view = replace(factory.mixed(), margin=0.02)
    stopped = "filter=off,pairs=distinct"
    for metric, given in (("val/probe_top1", True), ("train/loss", False)):
        view = replace(view, metric=metric)
        arms = {one.arm: one for one in details(view, compare_to_baseline(view)).arms}
        assert (arms[stopped].equivalence is not None) is given
        assert arms["filter=on,pairs=distinct"].equivalence is not None
