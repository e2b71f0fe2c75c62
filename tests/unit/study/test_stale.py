"""What other code has computed: it is marked and kept, nothing goes on from it, and `--rerun stale` runs it anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import simlap.train.check  # noqa: F401 - torch is here: the checks need no process of their own
from simlap.config import yaml
from simlap.errors import UserError
from simlap.record.journal import read_cell, read_study
from simlap.storage import Storage
from simlap.study.claims import Claims
from simlap.study.events import EventLog
from simlap.study.lease import Lease
from simlap.study.options import Options
from simlap.study.plan import Plan, make_plan
from simlap.study.planned import PlannedCell
from simlap.study.searching import _again
from simlap.study.spec import load_study
from simlap.study.stale import discard, left_behind, to_rerun
from tests.tiny import TREE
from tests.unit.study.pretend import pretend

STUDY = """
name: small
base: base.yaml
factors: {lr: {path: optim.lr, levels: [0.01, 0.02]}}
baseline: {lr: 0.01}
seeds: 2
"""
ASHA = "scheduler: {kind: asha, grace_epochs: 1}\n"
RERUN = Options(rerun_stale=True)


def plan(tmp_path: Path, text: str = STUDY, options: Options | None = None, **base: Any) -> Plan:
    (tmp_path / "first.yaml").write_text(yaml.dump({**TREE, "name": "first"}))
    (tmp_path / "base.yaml").write_text(yaml.dump({**TREE, "evaluate": [{"kind": "probe"}], **base}))
    (tmp_path / "study.yaml").write_text(text)
    return make_plan(load_study(tmp_path / "study.yaml"), Storage(tmp_path / "runs"), options)


def staged(tmp_path: Path, text: str = STUDY, options: Options | None = None) -> Plan:
    return plan(tmp_path, text, options, pretrain="first.yaml", method={"kind": "supervised"})


def actions(made: Plan) -> list[str]:
    return [cell.action for cell in made.cells]


def rerun(made: Plan) -> list[PlannedCell]:
    cells = to_rerun(made)
    discard(made.storage, cells)
    return cells


def test_code_that_was_mixed_within_a_run_is_seen(tmp_path: Path) -> None:
    """Interrupted under one code and finished under another: what the last attempt left in `provenance.json` is today's."""
    first = plan(tmp_path)
    pretend(first.cells[0], "interrupted", 2, code="old")
    pretend(plan(tmp_path).cells[0])
    cell = first.cells[0]
    assert read_cell(first.storage, cell.cell_id).provenance["code"] != "old"
    assert actions(plan(tmp_path)) == ["stale", "new", "new", "new"]
    assert read_cell(first.storage, cell.cell_id).codes[0] == "old"
    assert left_behind(plan(tmp_path)) is None, "it has come to its end"
    rerun(plan(tmp_path, options=RERUN))
    pretend(plan(tmp_path).cells[0])
    assert actions(plan(tmp_path))[0] == "done"


def test_what_another_launch_is_at_work_on_is_not_discarded(tmp_path: Path) -> None:
    first = plan(tmp_path)
    for cell in first.cells[:2]:
        pretend(cell, code="old")
    pretend(first.cells[2], "running", 1, code="old")
    asked, storage = plan(tmp_path, options=RERUN), first.storage
    studies = storage.child("studies")
    with Lease(studies.child("other"), beat_s=0.01) as theirs, Lease(studies.child("small"), beat_s=0.01) as ours:
        claims, others = Claims(storage, "small", ours), Claims(storage, "other", theirs)
        assert others.take(first.cells[2].cell_id) is None
        with pytest.raises(
            UserError, match=r"claim.json: lr=0.01 · seed 1 is to be run anew, and study other, process"
        ):
            discard(storage, to_rerun(asked), claims)
        assert actions(plan(tmp_path)) == ["stale", "stale", "stale", "new"], "nothing was deleted"
        assert others.take(first.cells[0].cell_id) is None, "nor kept from others"
        assert "Another launch may be at work on 1 of them" in str(left_behind(plan(tmp_path)))
        for cell in first.cells:
            others.release(cell.cell_id)
        discard(storage, to_rerun(asked), claims)
        assert actions(plan(tmp_path)) == ["new"] * 4
        assert others.take(first.cells[2].cell_id) is None


def test_no_launch_discards_what_another_one_has_between_trials(tmp_path: Path) -> None:
    first = plan(tmp_path)
    pretend(first.cells[0], code="old")
    studies = first.storage.child("studies")
    with Lease(studies.child("other"), beat_s=0.01) as theirs, Lease(studies.child("small"), beat_s=0.01) as ours:
        Claims(first.storage, "other", theirs).take(first.cells[0].cell_id)
        with pytest.raises(UserError, match="study other"):
            _again(first, first.study, RERUN, frozenset(), Claims(first.storage, "small", ours))
    assert actions(plan(tmp_path))[0] == "stale"


@pytest.mark.parametrize("state", ["interrupted", "running", "stopped"])
def test_what_other_code_began_is_kept_and_does_not_go_on(tmp_path: Path, state: str) -> None:
    first = plan(tmp_path, STUDY + ASHA)
    *_, cell = first.cells
    pretend(cell, state, 1, code="old")
    if state == "stopped":
        settings = first.study.spec.scheduler.model_dump()
        events = EventLog(first.storage.child("studies", "small"))
        events.write("cell_stopped", **cell.place, scheduler=settings, reason="behind")
    made = plan(tmp_path, STUDY + ASHA)
    assert made.cells[-1].action == "stale"
    assert [one.cell_id for one in made.pending] == [one.cell_id for one in first.cells[:-1]]
    assert (left_behind(made) is None) == (state == "stopped")
    made.save()
    again = plan(tmp_path, STUDY + ASHA)
    assert again.index.read == [], "the index knows it"
    assert actions(again) == actions(made)
    asked = plan(tmp_path, STUDY + ASHA, RERUN)
    assert [one.cell_id for one in rerun(asked)] == [cell.cell_id]
    assert asked.cells[-1].epochs_left == 3
    assert plan(tmp_path, STUDY + ASHA).cells[-1].action == "new"


def test_a_failed_cell_begins_anew_where_its_code_has_changed(tmp_path: Path) -> None:
    first = plan(tmp_path)
    pretend(first.cells[0], "failed", 2, code="old")
    pretend(first.cells[1], "failed", 2)
    pretend(first.cells[2], "failed", 0, code="old")  # nothing to go on from: no other code is in what it will come to
    assert actions(plan(tmp_path))[:3] == ["given_up"] * 3
    retried = plan(tmp_path, options=Options(retry_failed=True))
    assert actions(retried)[:3] == ["rerun", "failed", "failed"]
    assert [cell.epochs_left for cell in retried.cells[:3]] == [3, 1, 3]
    assert rerun(retried) == retried.cells[:1]
    assert actions(plan(tmp_path, options=Options(retry_failed=True)))[:3] == ["new", "failed", "failed"]


def test_nothing_starts_from_a_stage_that_other_code_began(tmp_path: Path) -> None:
    first = staged(tmp_path)
    began, gone, *_ = first.stages
    pretend(began, "interrupted", 1, code="old")
    pretend(gone, "failed", 1, code="old")
    made = staged(tmp_path)
    assert [stage.action for stage in made.stages] == ["stale", "given_up"]
    assert made.pending == []
    assert made.waves() == []
    assert "2, left as they are, with what starts from them" in str(left_behind(made))
    asked = staged(tmp_path, options=RERUN)
    assert {cell.cell_id for cell in rerun(asked)} == {began.cell_id, gone.cell_id}
    fresh = staged(tmp_path)
    assert [stage.action for stage in fresh.stages] == ["new", "new"]
    assert len(fresh.pending) == 6
    assert left_behind(fresh) is None


def test_what_started_from_a_stale_stage_is_stale_and_goes_on_all_the_same(tmp_path: Path) -> None:
    """Its own code has not changed; what it started from cannot be changed under it."""
    first = staged(tmp_path)
    pretend(first.stages[0], code="old")
    pretend(first.cells[0], "interrupted", 1)
    pretend(first.cells[1])
    made = staged(tmp_path)
    assert [stage.action for stage in made.stages] == ["stale", "new"]
    assert actions(made)[:2] == ["resume", "stale"]
    asked = staged(tmp_path, options=RERUN)
    assert {cell.cell_id for cell in to_rerun(asked)} == {
        first.stages[0].cell_id, first.cells[0].cell_id, first.cells[1].cell_id,
    }  # fmt: skip


def test_what_started_from_a_stage_that_is_run_anew_goes_with_it(tmp_path: Path) -> None:
    """Also where a race may never need it: afterwards nothing would tell that it started from what the stage was before."""
    first = staged(tmp_path)
    pretend(first.stages[0], code="old")
    pretend(first.cells[0])
    pretend(first.cells[1], code="old")
    asked = staged(tmp_path, options=RERUN)
    perhaps = replace(asked, cells=[replace(cell, perhaps=True) for cell in asked.cells])
    assert [cell.cell_id for cell in to_rerun(perhaps)] == [first.stages[0].cell_id, first.cells[0].cell_id]


def test_a_kill_while_a_stage_is_discarded_leaves_what_started_from_it_marked(tmp_path: Path) -> None:
    first = staged(tmp_path)
    pretend(first.stages[0], code="old")
    pretend(first.cells[0])
    cells = to_rerun(staged(tmp_path, options=RERUN))
    assert len(cells) == 2
    life = 0

    def mortal(self: Storage, path: str) -> None:
        nonlocal life
        if not life:
            raise KeyboardInterrupt
        life -= 1
        delete(self, path)

    delete = Storage.delete
    for steps in range(14):
        life = steps
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Storage, "delete", mortal)
            with pytest.raises(KeyboardInterrupt):
                discard(first.storage, cells)
        assert actions(staged(tmp_path))[0] != "done"
    discard(first.storage, cells)
    assert actions(staged(tmp_path))[0] == "new"


def test_what_only_an_earlier_scheduler_stopped_is_told(tmp_path: Path) -> None:
    first = plan(tmp_path, STUDY + ASHA)
    cell = first.cells[-1]
    pretend(cell, "stopped", 1, code="old")
    events = EventLog(first.storage.child("studies", "small"))
    events.write("cell_stopped", **cell.place, scheduler=first.study.spec.scheduler.model_dump(), reason="behind")
    assert left_behind(plan(tmp_path, STUDY + ASHA)) is None
    assert "began: 1" in str(left_behind(plan(tmp_path, STUDY + ASHA.replace("epochs: 1", "epochs: 2"))))
    assert "began: 1" in str(left_behind(plan(tmp_path)))


def test_what_started_from_a_stage_before_it_was_run_anew_stays_marked(tmp_path: Path) -> None:
    """Whoever was not asked for, or is another study's."""
    first = staged(tmp_path)
    pretend(first.stages[0], code="old")
    for cell in first.cells[:2]:
        pretend(cell)
    staged(tmp_path).save()
    only = Options(rerun_stale=True, only=("lr=0.02",))
    assert [cell.cell_id for cell in rerun(staged(tmp_path, options=only))] == [
        first.stages[0].cell_id, first.cells[1].cell_id,
    ]  # fmt: skip
    assert actions(staged(tmp_path))[:2] == ["stale", "new"]
    pretend(staged(tmp_path).stages[0])
    pretend(staged(tmp_path).cells[1])
    made = staged(tmp_path)
    made.save()
    for again in (made, staged(tmp_path)):
        assert [again.stages[0].action, *actions(again)[:2]] == ["done", "stale", "done"]
    asked = staged(tmp_path, options=RERUN)
    assert [cell.cell_id for cell in rerun(asked)] == [first.cells[0].cell_id]
    pretend(staged(tmp_path).cells[0])
    assert actions(staged(tmp_path))[:2] == ["done", "done"]


@pytest.mark.parametrize("state", ["interrupted", "stopped"])
def test_a_search_waits_for_a_trial_that_other_code_began(tmp_path: Path, state: str) -> None:
    text = STUDY + "search: {factors: {wd: {path: optim.weight_decay, levels: [0.0, 0.1]}}, trials: 1}\n"
    first = plan(tmp_path, text)
    for trial in first.trials:
        pretend(trial, state, 1, code="old")
    made = plan(tmp_path, text)
    assert {trial.action for trial in made.trials} == {"stale"}
    assert made.pending == []
    assert made.cells == []
    assert left_behind(made) is not None
    rerun(plan(tmp_path, text, RERUN))
    assert {trial.action for trial in plan(tmp_path, text).trials} == {"new"}


def test_the_records_tell_the_code_of_every_arm(tmp_path: Path) -> None:
    made = staged(tmp_path)
    made.save()
    pretend(made.cells[0], code="old")
    view = read_study(made.storage, "small")
    assert {arm.code for arm in view.arms} == {stage.code for stage in view.stages} != {None}
    assert [arm.cells[0].codes for arm in view.arms] == [["old"], []]
