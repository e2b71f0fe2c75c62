"""Editing a study file does exactly what `plan` said: random edits, executions that end anyhow, other launches in between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simlap.train.check  # noqa: F401 - torch is here: the checks need no process of their own
from simlap.config import yaml
from simlap.storage import Storage
from simlap.study.events import EventLog
from simlap.study.options import Options
from simlap.study.plan import Plan, make_plan
from simlap.study.planned import PlannedCell
from simlap.study.spec import load_study
from tests.tiny import TREE
from tests.unit.study.pretend import pretend

NAMES = ("first", "second")
SCHEDULERS: tuple[dict[str, Any], ...] = (
    {"kind": "none"}, {"kind": "asha", "grace_epochs": 1}, {"kind": "asha", "grace_epochs": 2},
)  # fmt: skip
RESOURCES: tuple[dict[str, Any], ...] = ({"workers": 1}, {"workers": 2}, {"cpus_per_worker": 2})
LEVELS = (0.01, 0.02, 0.03)


@dataclass(frozen=True)
class File:
    """A study file, as far as it is edited."""

    name: str = NAMES[0]
    levels: tuple[float, ...] = LEVELS[:2]
    seeds: int = 2
    scheduler: int = 0
    resources: int = 0

    def plan(self, folder: Path, options: Options | None = None) -> Plan:
        (folder / "base.yaml").write_text(yaml.dump({**TREE, "evaluate": [{"kind": "probe"}]}))
        tree = {
            "name": self.name,
            "base": "base.yaml",
            "factors": {"lr": {"path": "optim.lr", "levels": list(self.levels)}},
            "baseline": {"lr": self.levels[0]},
            "seeds": self.seeds,
            "scheduler": SCHEDULERS[self.scheduler],
            "resources": RESOURCES[self.resources],
        }
        (folder / "study.yaml").write_text(yaml.dump(tree))
        return make_plan(load_study(folder / "study.yaml"), Storage(folder / "runs"), options)


edits = st.one_of(
    st.fixed_dictionaries({"name": st.sampled_from(NAMES)}),
    st.fixed_dictionaries(
        {"levels": st.lists(st.sampled_from(LEVELS), min_size=1, max_size=3, unique=True).map(tuple)}
    ),
    st.fixed_dictionaries({"seeds": st.integers(1, 3)}),
    st.fixed_dictionaries({"scheduler": st.integers(0, len(SCHEDULERS) - 1)}),
    st.fixed_dictionaries({"resources": st.integers(0, len(RESOURCES) - 1)}),
)
ends = st.lists(
    st.sampled_from(["done", "done", "failed", "interrupted", "running", "stopped"]), min_size=9, max_size=9
)
rounds = st.lists(st.tuples(edits, ends, st.integers(0, 9), st.booleans()), min_size=1, max_size=5)


def execute(plan: Plan, ends: list[str], killed_after: int, *, index: bool) -> None:
    """Begin what is pending, in order, until the launch is killed. `index`: it lives to write what it knows."""
    plan.save()
    events = EventLog(plan.storage.child("studies", plan.study.name), block=4)
    settings = plan.study.spec.scheduler.model_dump()
    for number, (cell, end) in enumerate(zip(plan.pending, ends, strict=False)):
        if number == killed_after:
            return
        stops = end == "stopped" and settings["kind"] != "none" and not cell.protected
        state = end if end != "stopped" or stops else "done"
        events.write("cell_started", **cell.place, seed=cell.seed)
        epoch = min(cell.facts.epoch + 1, 2) if state != "done" else None
        pretend(cell, state, epoch)
        match state:
            case "done":
                events.write("cell_done", **cell.place)
            case "stopped":
                events.write("cell_stopped", **cell.place, scheduler=settings, reason="behind")
            case "failed":
                events.write("cell_failed", **cell.place, reason="boom")
    events.close()
    if index:
        make_plan(plan.study, plan.storage).index.save()


def as_told(cells: list[PlannedCell]) -> dict[str, Any]:
    return {cell.cell_id: (cell.line, cell.seed, cell.action, cell.facts, cell.epochs_left) for cell in cells}


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(rounds=rounds)
def test_random_edits_do_what_the_plan_said(tmp_path_factory: pytest.TempPathFactory, rounds: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("edits")
    file = File()
    ids: dict[tuple[float, int], str] = {}
    finished: set[str] = set()
    for edit, how, killed_after, index in rounds:
        file = replace(file, **edit)
        plan = file.plan(folder)
        through_journals = without_index(file, folder)
        assert as_told(plan.cells) == as_told(through_journals.cells), "the index tells what the journals do"
        assert [cell.cell_id for cell in plan.pending] == [cell.cell_id for cell in through_journals.pending]
        for cell in plan.cells:
            lr = cell.experiment.optim.lr
            assert ids.setdefault((lr, cell.seed), cell.cell_id) == cell.cell_id, "ids stay, whatever is edited"
        assert not finished & {cell.cell_id for cell in plan.pending}, "what is finished is never run again"
        execute(plan, how, killed_after, index=index)
        finished |= {c.cell_id for c in file.plan(folder).cells if c.facts.state == "done"}
    plan = file.plan(folder, Options(retry_failed=True))
    execute(plan, ["done"] * len(plan.pending), killed_after=99, index=True)
    after = file.plan(folder, Options(retry_failed=True))
    assert after.pending == [], "what the plan said has been done, so nothing is left"
    assert {cell.action for cell in after.cells} <= {"done", "stopped"}
    assert after.index.read == [], "and all of it is in the index"
    wanted = {(lr, seed) for lr in file.levels for seed in range(file.seeds)}
    assert {(cell.experiment.optim.lr, cell.seed) for cell in after.cells} == wanted
    assert set(after.removed).isdisjoint(arm.name for arm in after.study.arms)


def without_index(file: File, folder: Path) -> Plan:
    """The plan from full readings of the journals."""
    place = folder / "runs" / "studies" / file.name / "index.json"
    kept = place.read_bytes() if place.exists() else None
    place.unlink(missing_ok=True)
    try:
        return file.plan(folder)
    finally:
        if kept is not None:
            place.write_bytes(kept)


def test_the_index_notices_what_others_do(tmp_path: Path) -> None:
    """Another study finishes a cell, evaluates it, or somebody deletes it."""
    file = File()
    plan = file.plan(tmp_path)
    one, other, *_ = plan.cells
    pretend(one, "interrupted", 1)
    pretend(other)
    file.plan(tmp_path).save()
    again = file.plan(tmp_path)
    assert again.index.read == []
    assert [cell.action for cell in again.cells] == ["resume", "done", "new", "new"]
    pretend(again.cells[0], "interrupted", 2)
    plan.storage.delete(f"cells/{other.cell_id}")
    last = file.plan(tmp_path)
    assert last.index.read == [one.cell_id]
    assert [(cell.action, cell.facts.epoch) for cell in last.cells[:2]] == [("resume", 2), ("new", 0)]
    pretend(last.cells[1], "interrupted", 1)
    assert file.plan(tmp_path).cells[1].action == "resume", "begun anew since the index was written"


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema_version": 99, "cells": {}}'])
def test_an_index_that_is_damaged_is_read_anew(tmp_path: Path, damage: bytes) -> None:
    file = File()
    pretend(file.plan(tmp_path).cells[0])
    plan = file.plan(tmp_path)
    plan.save()
    plan.storage.write("studies/first/index.json", damage)
    assert [cell.action for cell in file.plan(tmp_path).cells] == ["done", "new", "new", "new"]
