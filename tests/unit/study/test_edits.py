"""Editing a study file does exactly what `plan` said: random edits, executions that end anyhow, other launches in between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import simlap.train.check  # noqa: F401 - torch is here: the checks need no process of their own
from simlap.config import yaml
from simlap.storage import Storage
from simlap.study import planned
from simlap.study.events import EventLog
from simlap.study.options import Options
from simlap.study.plan import Plan, make_plan
from simlap.study.planned import PlannedCell
from simlap.study.racelog import record_race
from simlap.study.spec import load_study
from simlap.study.stale import discard, to_rerun
from tests.tiny import TREE
from tests.unit.study.pretend import pretend

NAMES = ("first", "second")
SCHEDULERS: tuple[dict[str, Any], ...] = (
    {"kind": "none"}, {"kind": "asha", "grace_epochs": 1}, {"kind": "asha", "grace_epochs": 2},
    {"kind": "race", "first_seeds": 3, "step": 1, "futility_epochs": [1]},
)  # fmt: skip
RESOURCES: tuple[dict[str, Any], ...] = ({"workers": 1}, {"workers": 2}, {"cpus_per_worker": 2})
LEVELS = (0.01, 0.02, 0.03)
CODES = ("one", "two")


@dataclass(frozen=True)
class File:
    """A study file, as far as it is edited; and the code that it is applied with."""

    name: str = NAMES[0]
    levels: tuple[float, ...] = LEVELS[:2]
    seeds: int = 2
    scheduler: int = 0
    resources: int = 0
    code: str = CODES[0]

    @property
    def races(self) -> bool:
        return bool(SCHEDULERS[self.scheduler]["kind"] == "race")

    @property
    def planned_seeds(self) -> int:
        return max(self.seeds, 3) if self.races else self.seeds

    def plan(self, folder: Path, options: Options | None = None) -> Plan:
        (folder / "base.yaml").write_text(yaml.dump({**TREE, "evaluate": [{"kind": "probe"}]}))
        tree = {
            "name": self.name,
            "base": "base.yaml",
            "factors": {"lr": {"path": "optim.lr", "levels": list(self.levels)}},
            "baseline": {"lr": self.levels[0]},
            "seeds": self.planned_seeds,
            "scheduler": SCHEDULERS[self.scheduler],
            "resources": RESOURCES[self.resources],
        }
        (folder / "study.yaml").write_text(yaml.dump(tree))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(planned, "code_of", lambda experiment: self.code)
            return make_plan(load_study(folder / "study.yaml"), Storage(folder / "runs"), options)


edits = st.one_of(
    st.fixed_dictionaries({"name": st.sampled_from(NAMES)}),
    st.fixed_dictionaries(
        {"levels": st.lists(st.sampled_from(LEVELS), min_size=1, max_size=3, unique=True).map(tuple)}
    ),
    st.fixed_dictionaries({"seeds": st.integers(1, 3)}),
    st.fixed_dictionaries({"scheduler": st.integers(0, len(SCHEDULERS) - 1)}),
    st.fixed_dictionaries({"resources": st.integers(0, len(RESOURCES) - 1)}),
    st.fixed_dictionaries({"code": st.sampled_from(CODES)}),
)
asked_for = st.builds(
    lambda only, retry, rerun, seeds: (only, Options((), retry_failed=retry, rerun_stale=rerun, seeds=seeds)),
    st.booleans(), st.booleans(), st.booleans(), st.none() | st.integers(1, 4),
)  # fmt: skip
ends = st.lists(
    st.sampled_from(["done", "done", "failed", "interrupted", "running", "stopped"]), min_size=12, max_size=12
)
rounds = st.lists(st.tuples(edits, asked_for, ends, st.integers(0, 12), st.booleans()), min_size=1, max_size=5)


def begun_now(plan: Plan) -> list[PlannedCell]:
    """What a launch begins without having seen anything more."""
    return [cell for cell in plan.pending if not cell.perhaps]


def execute(plan: Plan, code: str, ends: list[str], killed_after: int, *, index: bool) -> None:
    """Begin what is to be run, in order, until the launch is killed. `index`: it lives to write what it knows."""
    record_race(plan)
    plan.save()
    events = EventLog(plan.storage.child("studies", plan.study.name), block=4)
    settings = plan.study.spec.scheduler.model_dump()
    for number, (cell, end) in enumerate(zip(begun_now(plan), ends, strict=False)):
        if number == killed_after:
            return
        stops = end == "stopped" and settings["kind"] == "asha" and not cell.protected
        state = end if end != "stopped" or stops else "done"
        events.write("cell_started", **cell.place, seed=cell.seed)
        epoch = min(cell.facts.epoch + 1, 2) if state != "done" else None
        if cell.until is not None and state != "failed":
            state, epoch = "interrupted", cell.until
        pretend(cell, state, epoch, code=code)
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


@settings(max_examples=15, deadline=None, phases=[Phase.generate])  # shrinking would take minutes
@given(rounds=rounds)
def test_random_edits_do_what_the_plan_said(tmp_path_factory: pytest.TempPathFactory, rounds: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("edits")
    file = File()
    ids: dict[tuple[float, int], str] = {}
    finished: set[str] = set()
    for edit, (only, options), how, killed_after, index in rounds:
        file = replace(file, **edit)
        options = replace(options, only=(f"lr={file.levels[-1]}",) if only else ())
        plan = file.plan(folder, options)
        through_journals = without_index(file, folder, options)
        assert as_told(plan.cells) == as_told(through_journals.cells), "the index tells what the journals do"
        assert [cell.cell_id for cell in plan.pending] == [cell.cell_id for cell in through_journals.pending]
        for cell in plan.cells:
            lr = cell.experiment.optim.lr
            assert ids.setdefault((lr, cell.seed), cell.cell_id) == cell.cell_id, "ids stay, whatever is edited"
        assert len(plan.cells) == len(file.levels) * max(file.planned_seeds, options.seeds or 0)
        assert not only or {cell.experiment.optim.lr for cell in plan.pending} <= {file.levels[-1]}
        again = {cell.cell_id for cell in plan.pending if cell.action == "rerun"}
        assert options.rerun_stale or options.retry_failed or not again
        assert all(set(cell.facts.codes) - {file.code} for cell in plan.pending if cell.cell_id in again)
        assert not finished & ({cell.cell_id for cell in plan.pending} - again), "what is finished is never run again"
        discard(plan.storage, stale := to_rerun(plan))
        if stale:
            plan = file.plan(folder, options)
            assert not to_rerun(plan)
        before = {cell.cell_id: cell.facts for cell in file.plan(folder).cells}
        told = {cell.cell_id for cell in begun_now(plan)}
        execute(plan, file.code, how, killed_after, index=index)
        after = {cell.cell_id: cell for cell in file.plan(folder).cells}
        for cell_id, cell in after.items():
            assert len(cell.facts.codes) <= 1, "nothing goes on under other code than it began with"
            if cell_id not in told and cell_id in before:
                left = replace(cell.facts, state="", reason=None, stamp="")  # type: ignore[arg-type]  # it may be stopped
                assert left == replace(before[cell_id], state="", reason=None, stamp="")  # type: ignore[arg-type]
        finished -= {cell.cell_id for cell in stale}
        finished |= {cell_id for cell_id, cell in after.items() if cell.facts.state == "done"}
    settle(file, folder)


def settle(file: File, folder: Path) -> None:
    """Launches that are not killed come to an end, and leave what the file says."""
    options = Options(retry_failed=True, rerun_stale=True)
    for _ in range(20):
        discard(Storage(folder / "runs"), to_rerun(file.plan(folder, options)))
        plan = file.plan(folder, options)
        if not begun_now(plan):
            break
        execute(plan, file.code, ["done"] * len(plan.pending), killed_after=99, index=True)
    record_race(plan)
    file.plan(folder).save()
    after = file.plan(folder)
    assert begun_now(after) == [], "what the plan said has been done, so nothing is left"
    assert {cell.action for cell in after.cells} <= {"done", "stopped"} | ({"spared", "stale"} if file.races else set())
    assert after.racing is None or after.racing.over
    assert after.index.read == [], "and all of it is in the index"
    wanted = {(lr, seed) for lr in file.levels for seed in range(file.planned_seeds)}
    assert {(cell.experiment.optim.lr, cell.seed) for cell in after.cells} == wanted
    assert set(after.removed).isdisjoint(arm.name for arm in after.study.arms)


def without_index(file: File, folder: Path, options: Options) -> Plan:
    """The plan from full readings of the journals."""
    place = folder / "runs" / "studies" / file.name / "index.json"
    kept = place.read_bytes() if place.exists() else None
    place.unlink(missing_ok=True)
    try:
        return file.plan(folder, options)
    finally:
        if kept is not None:
            place.write_bytes(kept)


def test_the_index_notices_what_others_do(tmp_path: Path) -> None:
    """Another study finishes a cell, evaluates it, or somebody deletes it."""
    file = File()
    plan = file.plan(tmp_path)
    one, other, *_ = plan.cells
    pretend(one, "interrupted", 1, code=file.code)
    pretend(other, code=file.code)
    file.plan(tmp_path).save()
    again = file.plan(tmp_path)
    assert again.index.read == []
    assert [cell.action for cell in again.cells] == ["resume", "done", "new", "new"]
    pretend(again.cells[0], "interrupted", 2, code=file.code)
    plan.storage.delete(f"cells/{other.cell_id}")
    last = file.plan(tmp_path)
    assert last.index.read == [one.cell_id]
    assert [(cell.action, cell.facts.epoch) for cell in last.cells[:2]] == [("resume", 2), ("new", 0)]
    pretend(last.cells[1], "interrupted", 1, code=file.code)
    assert file.plan(tmp_path).cells[1].action == "resume", "begun anew since the index was written"


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema_version": 99, "cells": {}}'])
def test_an_index_that_is_damaged_is_read_anew(tmp_path: Path, damage: bytes) -> None:
    file = File()
    pretend(file.plan(tmp_path).cells[0], code=file.code)
    plan = file.plan(tmp_path)
    plan.save()
    plan.storage.write("studies/first/index.json", damage)
    assert [cell.action for cell in file.plan(tmp_path).cells] == ["done", "new", "new", "new"]
