"""What MLflow should hold for a study: pure functions of its view."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any, Literal

import pytest

from simlap.record.tracking.plan import plan_run, plan_study, run_key
from simlap.record.tracking.records import RunPlan
from simlap.record.tracking.views import PREFIX, saved_views
from simlap.record.view import CellView, StageView, StudyView, Unread
from tests.integration.mlflow_studies import START, cell, study


def plans_of(view: StudyView, report: dict[str, bytes] | None = None) -> dict[str, RunPlan]:
    return {plan.key: plan for plan in plan_study(view, report or {})}


def only_cell(one: CellView) -> RunPlan:
    return plan_run(one)


def test_a_cell_that_is_there_is_judged_without_its_configuration() -> None:
    """Of a thousand cells, that would take seconds."""
    parsed: list[bytes] = []

    def parse(content: bytes) -> dict[str, Any]:
        parsed.append(content)
        return {"optim": {"lr": 0.5}}

    def planned(content: bytes) -> RunPlan:
        view = study(seeds=1)
        (arm, *others) = view.arms
        one = replace(arm.cells[0], config=Unread(lambda: content, parse))
        view = replace(view, arms=[replace(arm, cells=[one]), *others])
        return plans_of(view)[f"cell:{one.cell_id}"]

    first, other = planned(b"lr: 0.5"), planned(b"lr: 0.6")
    assert first.digest != other.digest
    assert not parsed
    assert first.params["optim.lr"] == "0.5"
    assert first.artifacts[0].content() == b"lr: 0.5"


@pytest.mark.parametrize(("metric", "mode"), [("train/loss", "min"), ("val/probe_top1", "max")])
def test_the_most_accurate_arm_is_first_whatever_decides(metric: str, mode: Literal["min", "max"]) -> None:
    view = replace(study(), metric=metric, mode=mode, report_metric="test/probe_top1")
    arms = json.loads(saved_views(view)[f"{PREFIX}arms"])
    assert json.loads(arms["state"])["orderByAsc"] is False


def test_one_run_per_study_arm_and_started_cell_parents_first() -> None:
    view = study(seeds=2, states={1: {"state": "new", "epochs": 0}})
    plans = plan_study(view, {})
    assert [plan.key.split(":")[0] for plan in plans] == ["study", "arm", "cell", *(["arm", "cell", "cell"] * 3)]
    placed = set()
    for plan in plans:
        assert plan.parent is None or plan.parent in placed
        placed.add(plan.key)


def test_params_hold_the_packages_of_plugins() -> None:
    """As the cell's id does."""
    plan = only_cell(cell(9, 0, {"filter": "on"}, provenance={"plugins": {"method.gate": "bands 1.0"}}))
    assert plan.params["plugins.method.gate"] == "bands 1.0"
    assert not any(key.startswith("plugins") for key in only_cell(cell(9, 0, {"filter": "on"})).params)


def test_a_stage_is_one_run_under_the_study() -> None:
    users = [one.cell_id for arm in study().arms for one in arm.cells]
    first = cell(9, 0, {"filter": "on"}, provenance={"data_fingerprint": "fp"})
    waiting = cell(10, 1, {"filter": "on"}, state="new", epochs=0)
    stages = [
        StageView("pretrain", first, users),
        StageView("pretrain", first, users),
        StageView("pretrain", waiting, users),
    ]
    plans = plan_study(replace(study(), stages=stages), {})
    (stage,) = [plan for plan in plans if plan.key.startswith("stage:")]
    assert (stage.key, stage.parent, stage.name) == (f"stage:{first.cell_id}", "study", "pretrain · seed 0")
    assert run_key(stage.tags) == stage.key
    assert (stage.tags["simlap.kind"], stage.tags["simlap.used_by"], stage.status) == ("stage", "4 cells", "FINISHED")
    assert stage.model_of == first.cell_id
    assert plans.index(stage) > [plan.key for plan in plans].index("study")
    others = {plan.key: plan.digest for plan in plans if plan.key.startswith(("arm:", "cell:"))}
    without = {plan.key: plan.digest for plan in plan_study(study(), {}) if plan.key != "study"}
    assert others == without, "these stay as they are"


def test_a_run_says_what_it_started_from() -> None:
    plan = only_cell(cell(0, 0, {"filter": "on"}, provenance={"start": "0123456789abcdef"}))
    assert plan.params["start"] == plan.tags["simlap.start"] == "0123456789abcdef"
    assert "start" not in only_cell(cell(0, 0, {"filter": "on"})).params


def test_params_tell_of_the_last_stage_alone() -> None:
    one = cell(0, 0, {"filter": "on"})
    one = replace(one, config={**one.config, "pretrain": {"name": "first", "train": {"epochs": 2}}})
    assert not any(key.startswith("pretrain") for key in only_cell(one).params)
    assert not any("pretrain" in key for key in only_cell(one).tags)


def test_the_key_is_found_again_from_the_tags() -> None:
    assert all(run_key(plan.tags) == plan.key for plan in plan_study(study(), {}))
    assert run_key(only_cell(cell(0, 0, {"filter": "on"})).tags) == only_cell(cell(0, 0, {"filter": "on"})).key
    assert run_key({"mlflow.runName": "someone else's"}) is None


def test_a_run_that_was_begun_anew_is_another_run() -> None:
    one = cell(0, 0, {"filter": "on"})
    again = only_cell(replace(one, provenance={**one.provenance, "rerun": 1}))
    assert again.key == f"{only_cell(one).key}:1"
    assert run_key(again.tags) == again.key


def test_params_hold_only_what_cannot_change() -> None:
    plan = next(plan for plan in plan_study(study(), {}) if plan.key.startswith("cell:"))
    assert plan.params["factor.filter"] == "on"
    assert plan.params["optim.lr"] == "0.003"
    assert plan.params["seed"] == "0"
    assert not any(key.startswith(("name", "resources", "checkpoint", "evaluate")) for key in plan.params)
    assert plan.tags["simlap.config.resources.workers"] == "1"
    assert plan.tags["simlap.baseline"] == "true"


def test_long_param_values_are_cut_visibly() -> None:
    one = cell(0, 0, {"filter": "on"})
    one.config["backbone"]["kwargs"] = {"long": "x" * 9000}
    value = only_cell(one).params["backbone.kwargs.long"]
    assert len(value) == 6000
    assert value.endswith("…")


def test_only_durable_epochs_are_shipped_with_their_times() -> None:
    points = list(only_cell(cell(1, 0, {"filter": "on"}, epochs=3, state="running", durable=2)).points())
    assert {point.step for point in points} == {1, 2}
    assert {point.time_ms for point in points} == {START + 61_000, START + 62_000}


def test_results_are_bars_and_last_points() -> None:
    plan = only_cell(cell(1, 0, {"filter": "on"}))
    assert plan.single["final/test_probe_top1"] == pytest.approx(0.89)
    closing = {point.key: point for point in plan.closing}
    assert closing["test/probe_top1"].step == 3
    assert "val/probe_top1" not in closing  # the last epoch's row has it already
    assert only_cell(cell(1, 0, {"filter": "on"}, state="stopped")).single == {}


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("done", "FINISHED"),
        ("stopped", "KILLED"),
        ("failed", "FAILED"),
        ("running", "RUNNING"),
        ("interrupted", "RUNNING"),
    ],
)
def test_status_follows_the_state(state: str, status: str) -> None:
    plan = only_cell(cell(0, 0, {"filter": "on"}, state=state, reason="rung", error="boom"))  # type: ignore[arg-type]
    assert plan.status == status
    assert (plan.end_ms is None) == (status == "RUNNING")
    assert ("simlap.stopped" in plan.tags) == (state == "stopped")
    assert ("simlap.error" in plan.tags) == (state == "failed")


def test_non_finite_values_are_counted() -> None:
    one = cell(0, 0, {"filter": "on"})
    one.rows[1].metrics["train/loss"] = math.nan
    one.result["test/knn_top1"] = math.inf
    assert only_cell(one).tags["simlap.non_finite"] == "2 values left out, first train/loss at epoch 2"


def test_an_arm_shows_its_summary_and_the_study_its_table() -> None:
    view = study()
    arm = view.arms[0].name
    summary = {"arms": {arm: {"mean": 0.9, "ci_low": 0.8, "note": "text"}}, "markdown": "| arm |\n|---|"}
    plans = plans_of(view, {"summary.json": json.dumps(summary).encode(), "report.html": b"<html>"})
    assert plans[f"arm:{arm}"].single == {"mean": 0.9, "ci_low": 0.8, "common_mean": 1.5}
    assert plans["study"].tags["mlflow.note.content"].startswith("| arm &emsp;|\n|---|")
    assert [a.path for a in plans["study"].artifacts] == ["report/report.html", "report/summary.json", "study.yaml"]


def test_ended_cells_say_how_it_went_and_growing_ones_do_not_change_their_arm() -> None:
    view = study(seeds=3, states={1: {"state": "stopped", "reason": "rung 1", "epochs": 2}, 2: {"state": "running"}})
    arm = view.arms[0]
    plans = plans_of(view)
    done, stopped, running = (plans[f"cell:{one.cell_id}"].tags.get("mlflow.note.content") for one in arm.cells)
    assert done is not None
    assert done.startswith("Done, 3 epochs: test/probe_top1 **0.9**")
    assert stopped is not None
    assert stopped.startswith("Stopped after epoch 2 (rung 1)")
    assert running is None
    note = plans[f"arm:{arm.name}"].tags["mlflow.note.content"]
    rows = [[value.strip() for value in line.replace("&emsp;", "").split("|")] for line in note.splitlines()[-3:]]
    assert [row[1:4] for row in rows] == [["0", "done", "3"], ["1", "stopped", "2"], ["2", "running", ""]]
    grown = study(
        seeds=3,
        states={1: {"state": "stopped", "reason": "rung 1", "epochs": 2}, 2: {"state": "running", "epochs": 2}},
    )
    assert plans_of(grown)[f"arm:{arm.name}"].digest == plans[f"arm:{arm.name}"].digest


def test_the_metric_of_decisions_is_the_first_chart() -> None:
    view = json.loads(plans_of(study())["study"].experiment_tags["mlflow.sharedViewState.curves"])
    state = json.loads(view["state"])
    assert state["compareRunCharts"][0]["metricKey"] == "val/probe_top1"
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert all(chart["metricSectionId"] in sections for chart in state["compareRunCharts"])
    assert set(state["groupsExpanded"]) == {f"tag.simlap.arm.{arm.name}" for arm in study().arms}


def test_a_long_table_is_cut_at_a_line_and_says_so() -> None:
    summary = {"arms": {}, "markdown": "\n".join(f"| arm {i} | {'x' * 50} |" for i in range(500))}
    note = plans_of(study(), {"summary.json": json.dumps(summary).encode()})["study"].tags["mlflow.note.content"]
    assert len(note) <= 8000
    assert "report/report.md" in note


@pytest.mark.parametrize(
    ("states", "status"),
    [({}, "FINISHED"), ({0: {"state": "failed"}}, "FAILED"), ({0: {"state": "stopped"}}, "FINISHED"),
     ({0: {"state": "interrupted"}}, "RUNNING")],
)  # fmt: skip
def test_a_study_runs_until_every_cell_has_ended(states: dict[int, dict[str, str]], status: str) -> None:
    assert plans_of(study(states=states))["study"].status == status


def test_the_digest_changes_with_everything_but_the_epochs() -> None:
    one = cell(0, 0, {"filter": "on"}, epochs=2, state="running")
    assert only_cell(one).digest == only_cell(replace(one, rows=one.rows[:1], durable_epoch=1)).digest
    for changed in (replace(one, state="stopped"), replace(one, seed=3), replace(one, provenance={"user": "ada"})):
        assert only_cell(one).digest != only_cell(changed).digest


def test_reading_the_journal_and_judging_a_projection_do_not_import_mlflow() -> None:
    code = (
        "import sys; import simlap.record.journal, simlap.record.mlflow, simlap.record.ship;"
        "assert 'mlflow' not in sys.modules, 'mlflow was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_arm_has_a_common_mean_once_all_have_ended() -> None:
    """MLflow's parallel coordinates show only what all runs have: an arm that was stopped has no final mean."""
    view = study(epochs=4, states={3: {"state": "stopped", "epochs": 2}})
    arms = [plan for plan in plan_study(view, {}) if plan.key.startswith("arm:")]
    assert [plan.single["common_mean"] for plan in arms] == [
        pytest.approx(arm.cells[0].metric_at("val/probe_top1", 2), rel=1e-4) for arm in view.arms
    ]
    growing = study(epochs=4, states={3: {"state": "running", "epochs": 2}})
    assert not any("common_mean" in plan.single for plan in plan_study(growing, {}))


def test_an_early_difference_is_not_told_as_a_final_one() -> None:
    view = study()
    first, second = (arm.name for arm in view.arms[:2])
    numbers = {
        "difference": -0.25,
        "difference_ci_low": -0.5,
        "difference_ci_high": 1e-17,
        "p_value": 0.1,
        "p_adjusted": 0.2,
    }
    summary = {
        "arms": {first: {"n": 3, "mean": 0.5, **numbers}, second: {"n": 0}},
        "comparisons": {
            first: {"final": True, "epoch": 3, **numbers},
            second: {"final": False, "metric": "val/probe_top1", "epoch": 2, **numbers},
        },
    }
    plans = {plan.name: plan.single for plan in plan_study(view, {"summary.json": json.dumps(summary).encode()})}
    assert plans[first]["difference"] == plans[second]["early_difference"] == -0.25
    assert plans[first]["difference_ci_high"] == 0.0, "rounding is not shown as a number"
    assert plans[second]["early_epoch"] == 2
    assert "difference" not in plans[second]
    assert not any(name.startswith("early") for name in plans[first])


def test_system_metrics_are_points_of_their_epoch() -> None:
    one = cell(0, 0, {"filter": "on"})
    busy = replace(one.rows[1], system={"system/cpu_utilization_percentage": 40.0})
    plan = only_cell(replace(one, rows=[one.rows[0], busy, one.rows[2]]))
    found = [point for point in plan.points() if point.key.startswith("system/")]
    assert found == [("system/cpu_utilization_percentage", 40.0, one.rows[1].time_ms, 2)]


def test_there_is_a_view_for_every_factor() -> None:
    tags = plan_study(study(), {})[0].experiment_tags
    views = {key: json.loads(value) for key, value in tags.items() if key.startswith("mlflow.sharedViewState.")}
    by = [json.loads(view["state"])["groupBy"] for view in views.values() if view["name"].startswith("Curves: by ")]
    assert [key["groupByData"] for group in by for key in group["groupByKeys"]] == ["factor.filter", "factor.pairs"]
