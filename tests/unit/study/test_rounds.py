"""A race from plan to plan, with pretended cells: what runs when, what is stopped, what a kill or an edit changes."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import simlap.train.check  # noqa: F401 - torch is here: the checks need no process of their own
from simlap.config import yaml
from simlap.errors import UserError
from simlap.record.journal import cell_storage, read_race, times_rerun
from simlap.storage import Storage
from simlap.study.budget import Budget
from simlap.study.claims import Claims
from simlap.study.events import read_events
from simlap.study.lease import Lease
from simlap.study.options import Options
from simlap.study.plan import Plan, make_plan
from simlap.study.planned import PlannedCell
from simlap.study.progress import Progress
from simlap.study.racelog import RaceLog, record_race
from simlap.study.rounds import Rounds
from simlap.study.spec import load_study
from simlap.study.stale import discard, left_behind, to_rerun
from tests.tiny import TREE
from tests.unit.study.pretend import pretend, take_over
from tests.unit.study.runner import EFFECTS, STUDY, Killed, Runner


@pytest.fixture
def straight(tmp_path: Path) -> Runner:
    runner = Runner(tmp_path / "straight")
    assert runner.launch()
    return runner


def test_seeds_are_added_to_undecided_arms_only(straight: Runner) -> None:
    verdicts, states = straight.verdicts(), straight.states()
    assert verdicts["lr=0.02"] == "better"
    assert verdicts["lr=0.03"] == "worse"
    assert states["lr=0.02", 3] == ("done", 4)
    assert states["lr=0.02", 7] == ("new", 0), "it was decided before"
    assert [states["lr=0.05", seed] for seed in range(8)] == [("done", 4)] * 8, "protected"
    first = straight.ran[:20]
    assert {until for *_, until in first} == {2}, "the rung comes first"
    assert straight.batches[0] == 20
    race = straight.race
    assert race.over
    assert race.seeds["lr=0.02"] == race.decisions["lr=0.02"].seeds < 8


def test_what_is_given_up_at_a_rung_is_stopped_there(tmp_path: Path) -> None:
    runner = Runner(tmp_path, STUDY.replace("futility: 0.1", "futility: 0.49"))
    assert runner.launch()
    assert runner.verdicts()["lr=0.04"] == "futile"
    states = runner.states()
    stopped = {key for key, (state, _) in states.items() if state == "stopped"}
    assert {arm for arm, _ in stopped} == {"lr=0.04"}
    assert {states[key] for key in stopped} == {("stopped", 2)}
    events = read_events(runner.storage.child("studies", "small"))
    first = {(e["type"], e.get("arm")): i for i, e in reversed([*enumerate(events)])}
    assert first["race_decision", "lr=0.04"] < first["cell_stopped", "lr=0.04"], "the decision, then the end"
    assert sum(e["type"] == "cell_stopped" for e in events) == len(stopped)
    reasons = {cell.facts.reason for cell in runner.plan().cells if cell.action == "stopped"}
    assert len(reasons) == 1
    assert "would decide it with probability" in str(reasons)


@pytest.mark.parametrize("seed", range(2))
def test_order_and_kills_change_nothing(straight: Runner, tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    levels = generator.sample(["0.01", "0.02", "0.03", "0.04", "0.05"], 5)
    other = Runner(tmp_path / "other", STUDY.replace("[0.01, 0.02, 0.03, 0.04, 0.05]", f"[{', '.join(levels)}]"))
    for kill in sorted(generator.sample(range(1, len(straight.ran)), 3)):
        with pytest.raises(Killed):
            other.launch(mix=seed, kill_after=kill)
    assert other.launch(mix=seed)
    assert other.decisions() == straight.decisions()
    assert other.states() == straight.states()
    assert sorted(map(str, other.ran)) == sorted(map(str, straight.ran)), "nothing runs twice, or needlessly"


def test_when_all_is_decided_nothing_is_to_be_run(straight: Runner) -> None:
    made, ran = straight.plan(), len(straight.ran)
    assert made.pending == []
    assert made.racing is not None
    assert made.racing.over
    assert {cell.action for cell in made.cells} == {"done", "spared", "stopped"}
    decisions = straight.decisions()
    assert straight.launch()
    assert (straight.decisions(), len(straight.ran)) == (decisions, ran)


def test_a_killed_launch_s_stops_are_made_up_for(tmp_path: Path) -> None:
    runner = Runner(tmp_path, STUDY.replace("futility: 0.1", "futility: 0.49"))
    with pytest.raises(Killed):
        runner.launch(kill_after=20)  # all are at the rung, and nobody has looked
    made = runner.plan()
    stopped = [cell for cell in made.cells if cell.action == "stopped"]
    assert {cell.line for cell in stopped} == {"lr=0.04"}
    assert {cell.facts.state for cell in stopped} == {"interrupted"}
    record_race(made)
    assert {cell.reread().facts.state for cell in stopped} == {"stopped"}
    written = len(runner.decisions())
    record_race(runner.plan())
    assert len(runner.decisions()) == written


def test_a_plan_promises_what_the_next_look_needs(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    made = runner.plan()
    surely = {(cell.line, cell.seed) for cell in made.pending if not cell.perhaps}
    assert surely == {(arm, seed) for arm in EFFECTS for seed in range(8 if arm == "lr=0.05" else 4)}
    assert {cell.until for cell in made.cells if (cell.line, cell.seed) == ("lr=0.02", 0)} == {2}
    with pytest.raises(Killed):
        runner.launch(kill_after=20)
    resumed = [cell for cell in runner.plan().pending if not cell.perhaps and cell.seed < 4]
    assert {(cell.action, cell.until) for cell in resumed} == {("resume", None)}


def test_an_arm_with_a_failed_cell_stays_undecided_until_it_is_tried_again(tmp_path: Path) -> None:
    runner = Runner(tmp_path, fails={("lr=0.02", 1): 3})
    assert runner.launch()
    assert runner.verdicts()["lr=0.02"] == "undecided"
    assert runner.verdicts()["lr=0.03"] == "worse"
    ran = len(runner.ran)
    assert runner.launch()
    assert len(runner.ran) == ran, "it is left alone"
    runner.fails = {}
    assert runner.launch(Options(retry_failed=True))
    assert runner.verdicts()["lr=0.02"] == "better"
    assert {arm for arm, *_ in runner.ran[ran:]} == {"lr=0.02"}


def test_other_settings_open_what_was_stopped(tmp_path: Path) -> None:
    runner = Runner(tmp_path, STUDY.replace("futility: 0.1", "futility: 0.49"))
    assert runner.launch()
    assert runner.states()["lr=0.04", 0] == ("stopped", 2)
    runner.text = STUDY.replace("futility: 0.1", "futility: 0.001")
    made = runner.plan()
    assert {cell.action for cell in made.cells if cell.line == "lr=0.04" and cell.facts.epoch} == {"resume"}
    assert runner.launch()
    assert runner.states()["lr=0.04", 0] == ("done", 4)
    fresh = Runner(tmp_path / "fresh", runner.text)
    assert fresh.launch()
    assert fresh.verdicts() == runner.verdicts()
    assert set(fresh.decisions()) <= set(runner.decisions()), "and what was decided before is kept"


def test_more_seeds_and_arms_replay_the_race(straight: Runner, tmp_path: Path) -> None:
    straight.text = STUDY.replace("seeds: 8", "seeds: 10")
    assert straight.launch()
    fresh = Runner(tmp_path / "fresh", straight.text)
    assert fresh.launch()
    assert straight.verdicts() == fresh.verdicts()
    counted = {(arm, seed) for (arm, seed), (state, _) in fresh.states().items() if state != "new"}
    assert counted <= {key for key, (state, _) in straight.states().items() if state != "new"}


def test_chosen_arms_run_up_to_the_look_and_decide_nothing(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    assert runner.launch(Options(only=("lr=0.02",)))
    assert runner.ran == [("lr=0.02", seed, 2) for seed in range(4)]
    assert runner.decisions() == []
    made = runner.plan(Options(only=("lr=0.02",)))
    assert made.pending == [], "it waits for the others"
    assert runner.launch()
    assert runner.verdicts()["lr=0.02"] == "better"


def test_a_budget_of_cells_leaves_the_rest(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    assert not runner.launch(budget=Budget(cells=12))
    assert len({(arm, seed) for arm, seed, _ in runner.ran}) == 12
    assert runner.decisions() == []


def test_a_race_that_was_taken_over_is_anothers_to_decide(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    for cell in runner.plan().cells:
        runner.run(replace(cell, until=None))
    study = runner.storage.child("studies", "small")
    with Lease(study, beat_s=0.01) as lease:
        claims = Claims(runner.storage, "small", lease)
        made = runner.plan()
        take_over(lease)
        record_race(made, claims)
    assert study.list() == ["lease.json"]


def test_cells_of_other_schedulers_count(tmp_path: Path) -> None:
    """All are done already: the race has nothing to run, and looks at no more than it would have asked for."""
    runner = Runner(tmp_path)
    for cell in runner.plan().cells:
        runner.run(cell if cell.until is None else replace(cell, until=None))
    made = runner.plan()
    assert made.pending == []
    record_race(made)
    made.save()
    fresh = Runner(tmp_path / "fresh")
    assert fresh.launch()
    assert runner.decisions() == fresh.decisions()


STAGED = """
name: small
base: base.yaml
factors: {lr: {path: optim.lr, levels: [0.01, 0.02]}}
baseline: {lr: 0.01}
seeds: 4
scheduler: {kind: race, first_seeds: 3, step: 1, futility_epochs: [1]}
"""


def staged(tmp_path: Path, options: Options | None = None) -> Plan:
    (tmp_path / "first.yaml").write_text(yaml.dump({**TREE, "name": "first"}))
    base = {**TREE, "name": "tuned", "pretrain": "first.yaml", "method": {"kind": "supervised"},
            "evaluate": [{"kind": "probe"}]}  # fmt: skip
    (tmp_path / "base.yaml").write_text(yaml.dump(base))
    (tmp_path / "study.yaml").write_text(STAGED)
    return make_plan(load_study(tmp_path / "study.yaml"), Storage(tmp_path / "runs"), options)


def rounds_of(made: Plan, claims: Claims | None = None) -> Rounds:
    return Rounds(
        made,
        progress=Progress(made, Console(file=io.StringIO())),
        log=RaceLog(made),
        fail=lambda cell, reason: pretend(cell, "failed", 0),
        claims=claims,
    )


def test_what_goes_with_its_stage_is_discarded_once(tmp_path: Path) -> None:
    made, again = staged(tmp_path), Options(rerun_stale=True)
    for stage in made.stages:
        pretend(stage, code="old")
    for cell in made.cells:
        pretend(cell, value=0.5)
    discard(made.storage, to_rerun(staged(tmp_path, again)))
    made = staged(tmp_path, again)
    rounds = rounds_of(made)
    while batch := rounds():
        for cell in batch:
            value = 0.5 + (cell.line == "lr=0.02") * [0.3, 0.1, 0.2, 0.2][cell.seed]
            pretend(cell, "done" if cell.until is None else "interrupted", cell.until, value=value)
    assert rounds.finished
    times = {(cell.line, cell.seed): times_rerun(cell_storage(made.storage, cell.cell_id)) for cell in made.everything}
    assert times == dict.fromkeys(times, 1)


def test_a_race_does_not_discard_what_another_launch_is_at_work_on(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    for cell in runner.plan().cells:
        pretend(cell, code="old", value=0.5)
    made, studies = runner.plan(Options(rerun_stale=True)), runner.storage.child("studies")
    with Lease(studies.child("other"), beat_s=0.01) as theirs, Lease(studies.child("small"), beat_s=0.01) as ours:
        Claims(runner.storage, "other", theirs).take(made.cells[2].cell_id)
        with pytest.raises(UserError, match="seed 0 is to be run anew, and study other"):
            rounds_of(made, Claims(runner.storage, "small", ours))()
    assert {cell.action for cell in runner.plan().cells} == {"stale"}


def test_what_an_edited_race_goes_on_with_is_told_where_other_code_began_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(tmp_path, STUDY.replace("futility: 0.1", "futility: 0.49"))
    assert runner.launch()
    stopped = sum(state == "stopped" for state, _ in runner.states().values())
    monkeypatch.setattr("simlap.study.planned.code_of", lambda experiment: "of later")
    assert left_behind(runner.plan()) is None
    runner.text = STUDY.replace("futility: 0.1", "futility: 0.001")
    made = runner.plan()
    assert made.pending == []
    assert f"began: {stopped}" in str(left_behind(made))


def test_stages_come_first_and_only_those_that_are_needed(tmp_path: Path) -> None:
    def launch(fails: Callable[[PlannedCell], bool]) -> list[list[tuple[str, int, int | None]]]:
        made = make_plan(load_study(tmp_path / "study.yaml"), Storage(tmp_path / "runs"))
        made.save()
        rounds = Rounds(
            made,
            progress=Progress(made, Console(file=io.StringIO())),
            log=RaceLog(made),
            fail=lambda cell, reason: pretend(cell, "failed", 0),
        )
        batches = []
        while batch := rounds():
            batches.append([(cell.line, cell.seed, cell.until) for cell in batch])
            for cell in batch:
                state = "failed" if fails(cell) else "done" if cell.until is None else "interrupted"
                value = 0.5 + 0.1 * (cell.line == "lr=0.02") + 0.001 * (cell.seed + 2 * (cell.line == "lr=0.02")) ** 2
                pretend(cell, state, cell.until, values=lambda _, value=value: value)  # type: ignore[misc]
        assert rounds.finished
        return batches

    made = staged(tmp_path)
    assert [(stage.seed, stage.perhaps) for stage in made.stages] == [(0, False), (1, False), (2, False), (3, True)]
    batches = launch(lambda cell: cell.arm is None and cell.seed == 1)
    assert batches[0] == [("pretrain", seed, None) for seed in range(3)]
    assert {seed for _, seed, _ in batches[1]} == {0, 2}, "what starts from a failed stage fails"
    race = read_race(Storage(tmp_path / "runs").child("studies", "small"))
    assert race is not None
    assert race.over
    assert race.decisions["lr=0.02"].verdict == "undecided"


def test_nothing_runs_perhaps_where_all_that_is_needed_is_blocked(tmp_path: Path) -> None:
    made = staged(tmp_path)
    for stage in made.stages[:3]:
        pretend(stage, "interrupted", 1, code="old")
    made = staged(tmp_path)
    assert made.pending == []
    assert "3, left as they are, with what starts from them" in str(left_behind(made))
    assert {stage.action for stage in staged(tmp_path, Options(rerun_stale=True)).stages} == {"rerun", "new"}
