"""`--rerun stale` of a race: results go when the race comes to need new ones, and stay where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

import simlap.train.check  # noqa: F401 - torch is here: the checks need no process of their own
from simlap.record.journal import cell_storage, read_race, times_rerun
from simlap.study.options import Options
from simlap.study.plan import Plan
from simlap.study.stale import to_rerun
from tests.unit.study.pretend import pretend
from tests.unit.study.runner import Killed, Runner

RERUN = Options(rerun_stale=True)
Key = tuple[str, int]


def all_done_under_other_code(folder: Path) -> Plan:
    """As a study without a scheduler left it."""
    made = Runner(folder).plan()
    for cell in made.cells:
        pretend(cell, code="old", value=0.123)
    return made


def rerun(made: Plan) -> dict[Key, int]:
    return {(c.line, c.seed): times_rerun(cell_storage(c.storage, c.cell_id)) for c in made.cells}


def test_what_the_race_does_not_come_to_need_keeps_its_results(tmp_path: Path) -> None:
    before = all_done_under_other_code(tmp_path / "stale")
    stale = Runner(tmp_path / "stale")
    asked = stale.plan(RERUN)
    surely = {(cell.line, cell.seed) for cell in to_rerun(asked)}
    assert surely == {(arm.name, s) for arm in before.study.arms for s in range(8 if arm.name == "lr=0.05" else 4)}
    assert stale.launch(RERUN)
    fresh = Runner(tmp_path / "fresh")
    assert fresh.launch()
    assert stale.decisions() == fresh.decisions(), "the old values decided nothing"
    ran = {(arm, seed) for arm, seed, _ in fresh.ran}
    assert {(arm, seed) for arm, seed, _ in stale.ran} == ran
    after = stale.plan()
    for cell in after.cells:
        if (cell.line, cell.seed) not in ran:
            assert cell.action == "stale"
            assert cell.facts.metrics["val/probe_top1"] == 0.123
    assert len(ran) < len(after.cells)
    assert rerun(after) == {key: int(key in ran) for key in rerun(after)}, "each once"


def test_a_launch_that_is_killed_discards_no_more_than_it_handed_out(tmp_path: Path) -> None:
    all_done_under_other_code(tmp_path)
    runner = Runner(tmp_path)
    with pytest.raises(Killed):
        runner.launch(RERUN, kill_after=5)
    left = {(cell.line, cell.seed) for cell in runner.plan().cells if cell.action == "stale"}
    assert left == {(f"lr=0.0{arm}", seed) for arm in (1, 2, 3, 4) for seed in range(4, 8)}
    assert runner.launch(RERUN)
    fresh = Runner(tmp_path / "fresh")
    assert fresh.launch()
    assert runner.decisions() == fresh.decisions()
    assert set(rerun(runner.plan()).values()) == {0, 1}, "nothing was discarded twice"


def test_the_race_waits_for_what_other_code_began(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    with pytest.raises(Killed):
        runner.launch(kill_after=20)  # all pause at the rung
    for cell in runner.plan().cells:
        if cell.line == "lr=0.03" and cell.facts.epoch:
            pretend(cell, "interrupted", 3, code="old")
    ran = len(runner.ran)
    assert runner.launch()
    assert not any(arm == "lr=0.03" for arm, *_ in runner.ran[ran:])
    race = read_race(runner.storage.child("studies", "small"))
    assert race is not None
    assert not race.over
    assert runner.launch(RERUN)
    fresh = Runner(tmp_path / "fresh")
    assert fresh.launch()
    assert runner.verdicts() == fresh.verdicts()
