"""What a report says of results that other code computed, and of those from before the data changed."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from simlap.record.journal import read_study
from simlap.record.view import StageView, StudyView
from simlap.report import build, print_report
from simlap.storage import Storage
from tests.unit.report import factory

OFF = "filter=off,pairs=distinct"


def of_code(view: StudyView, *codes: str, applied: str | None = "new") -> StudyView:
    """All results of this code, the study last applied with `applied`."""
    return replace(
        view,
        arms=[
            replace(arm, code=applied, cells=[replace(cell, codes=list(codes)) for cell in arm.cells])
            for arm in view.arms
        ],
    )


def changed(view: StudyView, arm: str, codes: dict[int, list[str]]) -> StudyView:
    cells = {cell.seed: cell for one in view.arms if one.name == arm for cell in one.cells}
    return factory.with_cells(view, arm, {seed: replace(cells[seed], codes=found) for seed, found in codes.items()})


def test_results_of_one_version_need_no_word() -> None:
    assert build(of_code(factory.study(), "new")).notices == []
    assert build(of_code(factory.study(), "any", applied=None)).notices == []


def test_commits_say_nothing_about_the_code() -> None:
    """Only documentation may have been committed; what counts may be changed without a commit."""
    view = of_code(factory.study(), "new")
    git = {0: "aaa", 1: "bbb"}
    cells = {c.seed: c for a in view.arms if a.name == OFF for c in a.cells}
    marked = {seed: replace(cells[seed], provenance={"git": {"commit": commit}}) for seed, commit in git.items()}
    assert build(factory.with_cells(view, OFF, marked)).notices == []


def test_arms_of_other_code_are_named() -> None:
    view = changed(of_code(factory.study(), "new"), OFF, {1: ["old"], 2: ["old", "new"], 4: ["old"]})
    (notice,) = build(view).notices
    assert notice.level == "warning"
    assert f"Of another than the study was last applied with: {OFF}." in notice.text
    assert notice.detail == f"{OFF}: seeds 1, 4 (old); seed 2 (old, then new)"
    console = Console(file=io.StringIO(), width=200)
    print_report(view, console)
    assert OFF in console.file.getvalue().split("warning:")[1]  # type: ignore[attr-defined]


def test_records_that_do_not_say_what_the_code_was_are_held_against_most() -> None:
    view = changed(of_code(factory.study(), "a", applied=None), OFF, {1: ["b"]})
    (notice,) = build(view).notices
    assert f"Of another than most are: {OFF}." in notice.text


def test_results_that_are_all_of_before_differ_by_no_code() -> None:
    (notice,) = build(of_code(factory.study(), "old")).notices
    assert notice.level == "note"
    assert "one version of the code" in notice.text


def test_each_arm_is_held_against_its_own_code() -> None:
    """Those that use a plug-in depend on more code than the others."""
    view = of_code(factory.study(), "new")
    arms = [
        replace(arm, code="plug", cells=[replace(cell, codes=["plug"]) for cell in arm.cells])
        if arm.levels["filter"] == "on"
        else arm
        for arm in view.arms
    ]
    assert build(replace(view, arms=arms)).notices == []


def test_what_starts_from_a_stage_of_other_code_is_named() -> None:
    view = of_code(factory.study(), "new")
    stage = replace(factory.cell("pretrain", 0, 0.9), codes=["old"])
    cell = view.arms[-1].cells[0]
    starts = replace(cell, provenance={"start": stage.cell_id})
    view = factory.with_cells(view, view.arms[-1].name, {0: starts})
    view = replace(view, stages=[StageView("pretrain", stage, [cell.cell_id], "new")])
    (notice,) = build(view).notices
    assert notice.detail == f"{view.arms[-1].name}: seed 0 (new)"


def test_runs_of_before_the_data_changed_are_counted(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    cells = [{"cell_id": "n0", "seed": 0, "fingerprint": "now"}, {"cell_id": "n1", "seed": 1, "fingerprint": "now"}]
    arm = {"name": "a", "levels": {"f": "a"}, "protected": True, "baseline": True, "cells": cells}
    before = [
        {"cell_id": "o0", "seed": 0, "fingerprint": "then"},
        {"cell_id": "o1", "seed": 1, "fingerprint": "then"},  # never begun
        {"cell_id": "o2", "seed": 0, "fingerprint": "now"},  # of another base
    ]
    plan = {
        "metric": "val/probe_top1", "mode": "max", "report_metric": "test/probe_top1", "epochs": 3, "seeds": [0, 1],
        "factors": {"f": ["a"]}, "scheduler": "none", "claims": [], "validation": True, "arms": [arm],
        "command": "", "provenance": {}, "text": "",
        "kept": [{"name": "a", "cells": before}, {"name": "gone", "cells": before}],
    }  # fmt: skip
    storage.write_json("studies/s/plan.json", plan)
    for name in ("o0", "o2"):
        storage.write("cells/" + name + "/config.yaml", b"")
    view = read_study(storage, "s")
    assert view.superseded == {"a": 1}
    texts = [notice.text for notice in build(view).notices]
    assert "1 run is from before the data changed, kept and not compared: a." in texts
