"""What a launch can be asked for besides the file, what goes stale, what fits a budget, what seeds can show."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import simlap.train.check  # noqa: F401 - torch is here: the checks need no process of their own
from simlap.config import cell_id, yaml
from simlap.errors import ConfigError, DataError, UserError
from simlap.record.journal import cell_storage, times_rerun
from simlap.storage import Storage
from simlap.study import checks
from simlap.study import gc as collector
from simlap.study.budget import Budget, BudgetGuard, budget_left
from simlap.study.estimate import detectable, device_hours
from simlap.study.events import EventLog
from simlap.study.lease import Lease
from simlap.study.options import Options, with_seeds
from simlap.study.plan import Plan, make_plan
from simlap.study.power import smallest_difference
from simlap.study.saved import superseded
from simlap.study.spec import Study, load_study
from simlap.study.stale import discard, to_rerun
from tests.tiny import TREE
from tests.unit.study.pretend import EPOCH_S, checkpoint_name, pretend

STUDY = """
name: small
base: base.yaml
factors:
  lr: {path: optim.lr, levels: [0.01, 0.02]}
  filter: {path: method.gate.kind, levels: [gumbel, open]}
baseline: {lr: 0.01, filter: gumbel}
seeds: 2
"""


def study(tmp_path: Path, text: str = STUDY, **base: Any) -> Study:
    (tmp_path / "base.yaml").write_text(yaml.dump({**TREE, "evaluate": [{"kind": "probe"}], **base}))
    (tmp_path / "study.yaml").write_text(text)
    return load_study(tmp_path / "study.yaml")


def plan(tmp_path: Path, options: Options | None = None, text: str = STUDY, **base: Any) -> Plan:
    return make_plan(study(tmp_path, text, **base), Storage(tmp_path / "runs"), options)


def with_budget(given: Study, **limits: Any) -> Study:
    return replace(given, spec=given.spec.model_copy(update={"budget": Budget(**limits)}))


def test_only_chooses_arms(tmp_path: Path) -> None:
    chosen = plan(tmp_path, Options(only=("lr=0.02",)))
    assert {cell.line for cell in chosen.pending} == {"lr=0.02 filter=gumbel", "lr=0.02 filter=open"}
    assert {c.line for c in plan(tmp_path, Options(only=("lr=*", "filter=op*"))).pending} == {
        "lr=0.01 filter=open", "lr=0.02 filter=open",
    }  # fmt: skip
    assert len(plan(tmp_path, Options(only=("lr=0.02 filter=open",))).pending) == 2


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("lr", "is written factor=level"),
        ("fliter=1", "no such factor.*did you mean 'filter'.*Valid: lr, filter"),
        ("filter=opem", "no arm has such a level.*did you mean 'open'"),
    ],
)
def test_only_names_what_there_is(tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"command line: --only.*{message}"):
        plan(tmp_path, Options(only=(pattern,)))


def test_failed_cells_are_left_alone_until_asked_for(tmp_path: Path) -> None:
    pretend(plan(tmp_path).cells[0], "failed", 2)
    left = plan(tmp_path)
    assert left.cells[0].action == "given_up"
    assert left.cells[0] not in left.pending
    again = plan(tmp_path, Options(retry_failed=True))
    assert again.cells[0] in again.pending
    assert again.cells[0].epochs_left == 1


@pytest.mark.parametrize(
    ("given", "asked", "seeds"),
    [("2", 4, [0, 1, 2, 3]), ("2", 1, [0, 1]), ("[7, 1]", 4, [7, 1, 0, 2]), ("[7, 1]", None, [7, 1])],
)
def test_seeds_are_added_and_never_taken_away(tmp_path: Path, given: str, asked: int | None, seeds: list[int]) -> None:
    more = with_seeds(study(tmp_path, STUDY.replace("seeds: 2", f"seeds: {given}")), asked)
    assert more.spec.seed_list() == seeds


def test_ids_are_those_of_the_experiments(tmp_path: Path) -> None:
    for cell in plan(tmp_path).cells:
        assert cell.cell_id == cell_id(cell.experiment, cell.fingerprint)


def test_removed_arms_are_kept_and_come_back(tmp_path: Path) -> None:
    first = plan(tmp_path)
    for cell in first.cells:
        pretend(cell)
    first.save()
    fewer = STUDY.replace("[0.01, 0.02]", "[0.01]")
    for _ in range(2):  # not only in the first plan after the edit
        without = plan(tmp_path, text=fewer)
        assert without.removed == ["lr=0.02 filter=gumbel", "lr=0.02 filter=open"]
        without.save()
    assert collector.find_leftovers(first.storage) == []
    gone = collector.find_leftovers(first.storage, removed=True)
    assert {leftover.cell_id for leftover in gone} == {c.cell_id for c in first.cells if "lr=0.02" in c.line}
    back = plan(tmp_path)
    assert back.removed == []
    assert {cell.action for cell in back.cells} == {"done"}


def test_cells_of_other_data_are_shown_as_stale(tmp_path: Path) -> None:
    first = plan(tmp_path)
    pretend(first.cells[0])
    first.save()
    pretend_other = {"fingerprint": "0" * 64}
    saved = first.storage.read_json("studies/small/plan.json")
    for arm in saved["arms"]:
        for cell in arm["cells"]:
            cell |= pretend_other | {"cell_id": cell["cell_id"][::-1]}
    first.storage.write_json("studies/small/plan.json", saved)
    first.storage.write_json(f"cells/{first.cells[0].cell_id[::-1]}/result.json", {})
    changed = plan(tmp_path)
    assert superseded(changed) == {first.cells[0].line: 1}
    assert changed.removed == []


def test_code_of_before_makes_a_cell_stale_until_it_is_rerun(tmp_path: Path) -> None:
    first = plan(tmp_path)
    pretend(first.cells[0], code="old")
    pretend(first.cells[1])
    stale = plan(tmp_path)
    assert [cell.action for cell in stale.cells[:3]] == ["stale", "done", "new"]
    assert stale.cells[0] not in stale.pending
    stale.save()
    asked = plan(tmp_path, Options(rerun_stale=True))
    assert to_rerun(asked) == [asked.cells[0]]
    assert asked.cells[0].epochs_left == 3
    cell = cell_storage(asked.storage, asked.cells[0].cell_id)
    assert times_rerun(cell) == 0
    discard(asked.storage, to_rerun(asked))
    assert times_rerun(cell) == 1
    assert plan(tmp_path).cells[0].action == "new"
    pretend(plan(tmp_path).cells[0])
    assert [cell.action for cell in plan(tmp_path).cells[:2]] == ["done", "done"]


@pytest.mark.slow
def test_a_kill_while_a_stale_cell_is_discarded_leaves_none_that_looks_finished(tmp_path: Path) -> None:
    pretend(plan(tmp_path).cells[0], code="old")

    class Killed(BaseException):
        pass

    deletions = life = 0

    def mortal(self: Storage, path: str) -> None:
        nonlocal deletions
        if deletions == life:
            raise Killed
        deletions += 1
        delete(self, path)

    delete = Storage.delete
    for steps in range(7):
        life = steps
        again = plan(tmp_path, Options(rerun_stale=True))
        deletions = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Storage, "delete", mortal)
            with contextlib.suppress(Killed):
                discard(again.storage, [again.cells[0]])
        cell = plan(tmp_path, Options(rerun_stale=True)).cells[0]
        assert cell.action in ("rerun", "resume", "new")
        assert cell.action != "resume" or not again.storage.list(f"cells/{cell.cell_id}/checkpoints")


def test_hours_come_from_cells_of_the_same_shape(tmp_path: Path) -> None:
    assert device_hours(plan(tmp_path).cells).total is None
    pretend(plan(tmp_path).cells[0])
    made = plan(tmp_path)
    hours = device_hours(made.cells)
    assert hours.total == pytest.approx(7 * 3 * EPOCH_S / 3600)
    assert hours.guessed, "the arms without a filter are of another shape"
    assert hours.by_line["lr=0.02 filter=gumbel"] == pytest.approx(2 * 3 * EPOCH_S / 3600)


def test_power_is_of_the_spread_so_far(tmp_path: Path) -> None:
    assert detectable(plan(tmp_path)) is None
    first = plan(tmp_path)
    for cell in first.cells:
        if cell.arm is not None and cell.arm.baseline:
            pretend(cell)
    bound = detectable(plan(tmp_path))
    values = [cell.facts.metrics["test/probe_top1"] for cell in plan(tmp_path).cells if cell.action == "done"]
    spread = math.sqrt(2) * abs(values[0] - values[1]) / math.sqrt(2)
    assert bound is not None
    assert bound.difference == pytest.approx(smallest_difference(2, spread, comparisons=3))
    assert bound.basis == "from 2 seeds of the baseline, arms taken for independent"
    for cell in plan(tmp_path).cells:
        if cell.line == "lr=0.02 filter=open":
            pretend(cell)
    paired = detectable(plan(tmp_path))
    assert paired is not None
    assert paired.basis == "from the paired differences of 1 arm so far"


def test_a_budget_of_cells_holds_back_those_beyond_it(tmp_path: Path) -> None:
    given = with_budget(study(tmp_path), cells=3)
    made = make_plan(given, Storage(tmp_path / "runs"))
    assert (len(made.pending), made.held_back) == (3, 5)
    events = EventLog(made.storage.child("studies", "small"))
    for cell in made.pending[:2]:
        events.write("cell_started", **cell.place)
        pretend(cell)
    again = make_plan(given, made.storage)
    assert (len(again.pending), again.held_back) == (1, 5)
    assert again.spent.device_hours == pytest.approx(2 * 3 * EPOCH_S / 3600)
    assert make_plan(with_budget(given, cells=9), made.storage).held_back == 0


def test_the_guard_counts_what_runs(tmp_path: Path) -> None:
    made = plan(tmp_path)
    now = 0.0
    guard = BudgetGuard(Budget(device_hours=2, cells=2), made.spent, clock=lambda: now)
    one, other, third, *_ = made.cells
    assert guard.may_start(one)
    guard.started(one, 1)
    now = 3600.0
    guard.started(other, 1)
    assert not guard.may_start(third), "two cells were begun"
    assert guard.may_start(one), "one that was begun may go on"
    guard.ended(one.cell_id)
    assert guard.reached() is None
    now = 7200.0
    assert guard.reached() == "2 of 2 device-hours"
    assert not guard.may_start(one)
    clock = BudgetGuard(Budget(wall_hours=1), made.spent, clock=lambda: now)
    now += 3600
    assert clock.reached() == "1 of 1 hours"


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    spent = plan(tmp_path).spent
    assert budget_left(Budget(device_hours=5), spent, 4.0, 0) is None
    assert budget_left(Budget(device_hours=5), spent, None, 0) is None
    assert budget_left(Budget(device_hours=5), spent, 6.0, 0) == "about 6 device-hours to run, 5 of 5 left"
    assert budget_left(Budget(cells=3), spent, 1.0, 4) == "4 cells beyond the 3 that may begin"


def test_gc_takes_what_no_study_needs_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(tmp_path)
    kept, orphan, going, single = made.cells[:4]
    for cell, state in ((kept, "done"), (orphan, "done"), (going, "running"), (single, "done")):
        pretend(cell, state)
    store = made.storage
    for epoch in (1, kept.experiment.train.epochs):
        store.write(f"cells/{kept.cell_id}/checkpoints/{checkpoint_name(epoch)}/model", b"1234")
    journal = f"cells/{single.cell_id}/journal/" + store.list(f"cells/{single.cell_id}/journal")[0]
    rows = [json.loads(line) for line in store.read(journal).decode().splitlines()]
    rows[0]["provenance"] = {"command": "simlap run x.yaml"}
    store.write(journal, "\n".join(map(json.dumps, rows)).encode())
    only_kept = (
        STUDY.replace("[0.01, 0.02]", "[0.01]").replace("[gumbel, open]", "[gumbel]").replace("seeds: 2", "seeds: 1")
    )
    plan(tmp_path, text=only_kept).save()
    found = collector.find_leftovers(store)
    assert [(one.kind, one.path.split("/", 2)[1], one.bytes > 0) for one in found] == sorted(
        [("cell", orphan.cell_id, True), ("checkpoint", kept.cell_id, True)], key=lambda one: one[1]
    )
    beats = iter(range(1, 100))
    lease = {"token": "t", "counter": 0, "host": "far", "machine": "far", "pid": 7, "process_started": 0}

    def beat(seconds: float) -> None:
        store.write_json("studies/small/lease.json", {**lease, "counter": next(beats)})

    beat(0)
    monkeypatch.setattr(time, "sleep", beat)
    assert {one.cell_id for one in collector.find_leftovers(store)} == {orphan.cell_id}, "a launch holds the study"
    with pytest.raises(UserError, match="study small is being run by process 7 on far"):
        collector.delete(store, found)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # killed: its counter stands still
    assert collector.find_leftovers(store) == found
    collector.delete(store, found)
    assert set(store.list("cells")) == {cell.cell_id for cell in (kept, going, single)}
    assert store.list(f"cells/{kept.cell_id}/checkpoints") == [checkpoint_name(kept.experiment.train.epochs)]
    assert collector.find_leftovers(store) == []


def test_gc_waits_for_no_launch_whose_process_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage(tmp_path / "runs")
    with Lease(store.child("studies", "gone"), beat_s=0.01):
        held = store.read_json("studies/gone/lease.json")
    store.write_json("studies/gone/lease.json", {**held, "process_started": held["process_started"] - 1000})
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("nothing is to be waited for"))
    assert collector.running_studies(store) == {}


@pytest.mark.slow
def test_the_checks_in_a_process_of_their_own_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = study(tmp_path).arms
    asked = [(arm.name, arm.experiment) for arm in arms]
    here = checks.check_here(asked)
    monkeypatch.delitem(sys.modules, "torch")
    assert checks._check(asked) == here
    wrong = study(tmp_path, train={"epochs": 1, "batch_size": 5000}).arms
    with pytest.raises(DataError, match=r"arm x: .*batch"):
        checks._check([("arm x", wrong[0].experiment)])


def test_data_that_changed_are_looked_at_again(tmp_path: Path) -> None:
    stamp = checks._stamp(str(tmp_path))
    assert checks._stamp(str(tmp_path)) == stamp
    (tmp_path / "more").write_text("x")
    changed = checks._stamp(str(tmp_path))
    assert changed != stamp
    os.utime(tmp_path / "more", ns=(1, 1))
    assert checks._stamp(str(tmp_path)) != changed


@pytest.mark.slow
def test_planning_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    pretend(plan(tmp_path).cells[0])
    code = (
        "import sys; from simlap import cli\n"
        "try: cli.main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'timm'} & sys.modules.keys()), file=sys.stderr)\n"
    )
    words = ["plan", str(tmp_path / "study.yaml"), "--storage", str(tmp_path / "runs")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert "=+" in done.stdout
    assert done.stderr.strip() == "[]"
