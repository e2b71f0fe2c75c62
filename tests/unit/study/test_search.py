"""Searches: what is tried next, when it is over, and what comes of it."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import simlap.train.check  # noqa: F401 - torch is here: the checks need no process of their own
from simlap.config import yaml
from simlap.errors import ConfigError
from simlap.record.journal import read_study
from simlap.report import build as build_report
from simlap.report import render, summary_of
from simlap.storage import Storage
from simlap.study import gc as collector
from simlap.study.events import EventLog, read_events
from simlap.study.follow import Follower
from simlap.study.options import Options
from simlap.study.plan import Plan, make_plan
from simlap.study.planned import PlannedCell
from simlap.study.progress import Progress
from simlap.study.racelog import RaceLog
from simlap.study.rounds import Rounds
from simlap.study.search import FIRST_SEED, Values
from simlap.study.searching import run_searches
from simlap.study.spec import Study, load_study
from tests.tiny import TREE
from tests.unit.study.pretend import pretend

STUDY = """
name: small
base: base.yaml
factors: {filter: {path: method.gate.kind, levels: [gumbel, open]}}
baseline: {filter: gumbel}
seeds: 2
search:
  factors:
    lr: {path: optim.lr, range: {low: 1e-4, high: 1e-1, scale: log}}
    noise: {path: method.gate.noise, levels: [logistic, gumbel], when: {filter: gumbel}}
  trials: 5
  batch: 2
  epochs: 2
"""
ARMS = ["filter=gumbel", "filter=open"]
Objective = Callable[[PlannedCell], float | None]


def load(tmp_path: Path, text: str = STUDY, **base: Any) -> Study:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "base.yaml").write_text(yaml.dump({**TREE, "evaluate": [{"kind": "probe"}], **base}))
    (tmp_path / "study.yaml").write_text(text)
    return load_study(tmp_path / "study.yaml")


def plan(tmp_path: Path, text: str = STUDY, options: Options | None = None) -> Plan:
    return make_plan(load(tmp_path, text), Storage(tmp_path / "runs"), options)


def smooth(cell: PlannedCell) -> float:
    """Best at 3e-3 with the filter, at 1e-2 without."""
    best = 3e-3 if cell.stage.experiment.method.gate.kind == "gumbel" else 1e-2  # type: ignore[union-attr]
    return 0.9 - 0.1 * abs(math.log10(cell.stage.experiment.optim.lr / best))


def finish(cells: list[PlannedCell], objective: Objective = smooth) -> None:
    """The cells as if they had been run, in this order; those without a value fail."""
    for cell in cells:
        value = objective(cell)
        pretend(cell, "done" if value is not None else "failed", value=value)


def search(made: Plan, shuffled: random.Random | None = None, objective: Objective = smooth) -> list[Plan]:
    """Finish batch after batch, planning anew each time. All plans, the last one without trials to be run."""
    plans = [made]
    study = load_study(made.study.path)
    while batch := [cell for cell in plans[-1].trials if cell.pending]:
        if shuffled:
            shuffled.shuffle(batch)
        finish(batch, objective)
        plans.append(make_plan(study, made.storage))
    return plans


def tuned(made: Plan) -> dict[str, Values | None]:
    assert made.tuning is not None
    return {arm.name: made.tuning.values(arm) for arm in made.study.arms}


def asked(made: Plan) -> dict[str, list[Values]]:
    assert made.tuning is not None
    return {one.line: [trial.values for trial in one.trials] for one in made.tuning.searches}


def test_arms_are_tuned_and_then_compared(tmp_path: Path) -> None:
    first = plan(tmp_path)
    assert not first.cells
    assert [(cell.line, cell.trial) for cell in first.trials] == [
        (f"search: {arm}", number) for arm in ARMS for number in (1, 2)
    ]  # fmt: skip
    assert {cell.seed for cell in first.trials} == {FIRST_SEED}
    assert {cell.stage.experiment.train.epochs for cell in first.trials} == {2}
    assert [cell.line for cell in first.later if cell.trial is None] == ARMS * 2
    assert sum(cell.epochs_left for cell in first.later) == 2 * 3 * 2 + 4 * 3
    assert asked(first)[f"search: {ARMS[0]}"][0]["lr"] == asked(first)[f"search: {ARMS[1]}"][0]["lr"], "drawn alike"
    assert "noise" not in asked(first)[f"search: {ARMS[1]}"][0]
    *_, last = plans = search(first)
    assert [len(made.trials) for made in plans] == [4, 8, 10, 10]
    assert not last.later
    assert [cell.line for cell in last.cells] == ARMS * 2
    for arm in last.study.arms:
        values = tuned(last)[arm.name]
        assert values is not None
        assert {cell.experiment.optim.lr for cell in last.of_arm(arm)} == {values["lr"]}
        assert {cell.experiment.train.epochs for cell in last.of_arm(arm)} == {3}
        trials = [cell for cell in last.trials if cell.line == f"search: {arm.name}"]
        best = max(trials, key=smooth)
        assert best.experiment.optim.lr == values["lr"]
    assert tuned(last)[ARMS[0]] != tuned(last)[ARMS[1]]
    assert {cell.seed for cell in last.cells} == {0, 1}


def test_neither_order_nor_interruption_changes_a_search(tmp_path: Path) -> None:
    *_, undisturbed = search(plan(tmp_path / "a"))
    *_, shuffled = search(plan(tmp_path / "b"), random.Random(0))
    assert asked(shuffled) == asked(undisturbed)
    assert tuned(shuffled) == tuned(undisturbed)
    made = plan(tmp_path / "c")
    for number in range(99):  # a cell at a time, and a new plan after each
        pending = [cell for cell in made.trials if cell.pending]
        if not pending:
            break
        chosen = pending[number % len(pending)]
        pretend(chosen, "running" if number % 3 else "done", 1 if number % 3 else None, value=smooth(chosen))
        made = plan(tmp_path / "c")
    assert asked(made) == asked(undisturbed)
    assert [cell.cell_id for cell in made.cells] == [cell.cell_id for cell in undisturbed.cells]


def test_more_trials_go_on_from_those_before(tmp_path: Path) -> None:
    *_, few = search(plan(tmp_path, STUDY.replace("trials: 5", "trials: 4")))
    few.save()
    more = plan(tmp_path)
    before = asked(few)
    assert {line: values[:4] for line, values in asked(more).items()} == before
    assert [cell.trial for cell in more.trials if cell.pending] == [5, 5]
    assert not more.cells, "the best is not known before"
    assert {arm.name for arm in more.kept} == set(ARMS)


def test_one_search_for_all_arms(tmp_path: Path) -> None:
    text = STUDY.replace("trials: 5", "per: study\n  trials: 5")
    first = plan(tmp_path, text)
    assert {cell.line for cell in first.trials} == {"search"}
    *_, last = search(first)
    gumbel, other = tuned(last).values()
    assert gumbel is not None
    assert other is not None
    assert gumbel == {"lr": other["lr"], "noise": gumbel["noise"]}
    assert {cell.experiment.optim.lr for cell in last.cells} == {gumbel["lr"]}


def test_an_arm_without_anything_to_search_for_is_compared_as_it_is(tmp_path: Path) -> None:
    text = STUDY.replace("scale: log}}", "scale: log}, when: {filter: gumbel}}")
    made = plan(tmp_path, text)
    assert {cell.line for cell in made.trials} == {"search: filter=gumbel"}
    assert [cell.line for cell in made.cells] == ["filter=open"] * 2
    assert {cell.experiment.optim.lr for cell in made.cells} == {0.01}


def test_a_trial_is_the_mean_over_its_seeds(tmp_path: Path) -> None:
    text = STUDY.replace("trials: 5", "trials: 2\n  seeds: 2")
    first = plan(tmp_path, text)
    assert {cell.seed for cell in first.trials} == {FIRST_SEED, FIRST_SEED + 1}
    values = {(1, FIRST_SEED): 0.9, (1, FIRST_SEED + 1): 0.1, (2, FIRST_SEED): 0.6, (2, FIRST_SEED + 1): 0.5}
    *_, last = search(first, objective=lambda cell: values[cell.trial or 0, cell.seed])
    assert last.tuning is not None
    assert [one.best and (one.best.number, one.best.value) for one in last.tuning.searches] == [(2, 0.55)] * 2


def test_ties_go_to_the_first_trial_and_failures_to_none(tmp_path: Path) -> None:
    *_, last = search(plan(tmp_path), objective=lambda cell: None if cell.trial == 1 else 0.5)
    assert last.tuning is not None
    assert [one.best and one.best.number for one in last.tuning.searches] == [2, 2]
    again = plan(tmp_path, options=Options(retry_failed=True))
    assert [cell.trial for cell in again.trials if cell.pending] == [1, 1]
    assert not again.cells
    settled = make_plan(
        load_study(last.study.path), last.storage, Options(retry_failed=True),
        tried=frozenset(cell.cell_id for cell in last.trials),
    )  # fmt: skip
    assert tuned(settled) == tuned(last), "a launch tries a failed trial once"


def test_less_is_better_where_the_study_says_so(tmp_path: Path) -> None:
    text = STUDY + "metric: {mode: min}\n"
    *_, last = search(plan(tmp_path, text))
    for line in asked(last):
        trials = [cell for cell in last.trials if cell.line == line]
        worst = min(trials, key=smooth)
        values = tuned(last)[line.removeprefix("search: ")]
        assert values is not None
        assert values["lr"] == worst.experiment.optim.lr


def test_a_search_that_finds_nothing_fails_its_arm(tmp_path: Path) -> None:
    *_, last = search(plan(tmp_path), objective=lambda cell: None if "open" in cell.line else 0.5)
    assert last.tuning is not None
    assert set(last.tuning.hopeless) == {"filter=open"}
    assert {cell.line for cell in last.cells} == {"filter=gumbel"}
    last.save()
    view = read_study(last.storage, "small")
    assert [(cell.state, cell.reason) for cell in view.arms[1].cells] == [
        ("failed", "all 5 trials of its search failed; the first: boom")
    ] * 2
    assert "all 5 failed" in render(view, "md")
    shown = Follower(last.storage, "small").study
    assert [cell.state for cell in shown.arms[-1].cells] == ["failed", "failed"]


def test_values_that_are_wrong_together_only_fail_their_trial(tmp_path: Path) -> None:
    """Each is right beside the other's first or last value; a warm-up longer than the run is not."""
    text = STUDY.replace("  epochs: 2\n", "")[: STUDY.index("    noise")] + (
        "    epochs: {path: train.epochs, levels: [1, 2, 3]}\n"
        "    warmup: {path: optim.warmup_epochs, levels: [0, 1, 2]}\n"
        "  trials: 12\n  batch: 12\n"
    )
    first = plan(tmp_path, text)
    assert first.tuning is not None
    reasons = [trial.reason for trial in first.tuning.searches[0].trials if not trial.chains]
    assert reasons
    assert all("warmup_epochs" in str(reason) for reason in reasons)
    *_, last = search(first)
    assert all(values for values in tuned(last).values())


def test_a_choice_that_comes_twice_is_run_once(tmp_path: Path) -> None:
    text = STUDY.replace("range: {low: 1e-4, high: 1e-1, scale: log}", "levels: [0.001, 0.01]")
    *_, last = search(plan(tmp_path, text.replace("trials: 5", "trials: 12")))
    for line, values in asked(last).items():
        assert len(values) == 12
        different = {str(one) for one in values}
        assert len([cell for cell in last.trials if cell.line == line]) == len(different) <= 4


def test_only_leaves_other_searches_alone(tmp_path: Path) -> None:
    made = plan(tmp_path, options=Options(only=("filter=open",)))
    assert {cell.line for cell in made.pending} == {"search: filter=open"}
    assert {cell.line for cell in made.later if cell.selected} == {"search: filter=open", "filter=open"}


def test_stale_trials_are_kept_until_they_are_rerun(tmp_path: Path) -> None:
    first = plan(tmp_path)
    for cell in first.trials:
        pretend(cell, code="old", value=smooth(cell))
    *_, last = search(plan(tmp_path))
    assert {cell.action for cell in last.trials} == {"stale", "done"}
    assert last.cells
    again = plan(tmp_path, options=Options(rerun_stale=True))
    assert {cell.action for cell in again.trials} == {"rerun"}
    assert not again.cells


def test_the_budget_counts_trials(tmp_path: Path) -> None:
    made = plan(tmp_path, STUDY + "budget: {cells: 3}\n")
    assert len(made.pending) == 3
    assert made.held_back == 1


def test_a_launch_runs_searches_to_their_end(tmp_path: Path) -> None:
    """With the driver's own loop: plans, events and what is shown; a launch that is cut short and another one."""
    study = load(tmp_path)
    folder = Storage(tmp_path / "runs").child("studies", "small")
    ran: list[str] = []

    def launch(runs: int) -> tuple[Plan, bool]:
        made = make_plan(study, Storage(tmp_path / "runs"))
        made.save()
        events, left = EventLog(folder), runs
        shown = Progress(made, Console(quiet=True))

        def run(part: Plan) -> bool:
            nonlocal left
            left -= 1
            assert part.study.spec.scheduler.kind == "none"
            finish(part.pending)
            ran.extend(cell.cell_id for cell in part.pending)
            assert {cell.cell_id for cell in part.pending} <= shown.cells.keys()
            return left > 0

        found = run_searches(made, study, Options(), run=run, replanned=shown.update, events=events)
        events.close()
        assert [cell.name for cell in shown.study.arms] == [f"search: {arm}" for arm in ARMS] + ARMS
        return found

    made, finished = launch(1)
    assert not finished
    assert not made.cells
    watching = Follower(made.storage, "small")
    assert [len(arm.cells) for arm in watching.study.arms] == [5, 5, 2, 2]
    made, finished = launch(9)
    assert finished
    assert len(made.cells) == 4
    assert len(ran) == len(set(ran)) == 10, "each trial once"
    watching.look()
    assert [len(arm.cells) for arm in watching.study.arms] == [5, 5, 2, 2]
    assert sum(cell.state == "done" for arm in watching.study.arms for cell in arm.cells) == 10
    assert {cell.cell_id for arm in watching.study.arms for cell in arm.cells} >= {cell.cell_id for cell in made.cells}
    launch(9)
    decided = [event for event in read_events(folder) if event["type"] == "search_decision"]
    assert {event["arm"]: event["values"] for event in decided} == tuned(made)
    assert len(decided) == 2, "decided once, however many launches there are"
    assert {event["of"] for event in decided} == {5}


def test_readers_bear_arms_without_cells(tmp_path: Path) -> None:
    first = plan(tmp_path)
    first.save()
    view = read_study(first.storage, "small")
    assert [arm.cells for arm in view.arms] == [[], []]
    assert "small" in render(view, "html") + render(view, "latex")
    assert "0 of 5 over" in render(view, "md")
    *_, last = search(first)
    finish(last.cells)
    last.save()
    view = read_study(last.storage, "small")
    lr = tuned(last)[ARMS[1]]
    assert lr is not None
    assert f"{lr['lr']:g}" in render(view, "md")
    assert "Tuned values" in render(view, "html")
    assert summary_of(build_report(view))["tuned"][ARMS[1]]["values"] == lr


def test_nothing_that_a_search_needs_is_collected(tmp_path: Path) -> None:
    *_, last = search(plan(tmp_path))
    last.save()
    assert collector.find_leftovers(last.storage) == []
    fewer = plan(tmp_path, STUDY.replace("trials: 5", "trials: 2"))
    fewer.save()
    assert collector.find_leftovers(last.storage) == []
    plan(tmp_path, STUDY.replace("trials: 5", "trials: 2")).save()
    gone = collector.find_leftovers(last.storage, removed=True)
    assert {leftover.cell_id for leftover in gone} == {cell.cell_id for cell in last.trials if (cell.trial or 0) > 2}
    without = plan(tmp_path, STUDY[: STUDY.index("search:")])
    without.save()
    assert collector.find_leftovers(last.storage) == []
    assert {cell.action for cell in without.cells} == {"new"}


def test_the_ends_of_ranges_are_checked_before_anything_runs(tmp_path: Path) -> None:
    text = STUDY.replace(
        "lr: {path: optim.lr, range: {low: 1e-4, high: 1e-1, scale: log}}",
        "size: {path: train.batch_size, range: {low: 64, high: 9999, type: int}}",
    )
    with pytest.raises(Exception, match="batch") as raised:
        plan(tmp_path, text)
    assert "search (size=9999" in str(raised.value)


def test_arms_that_tuning_makes_equal_are_refused(tmp_path: Path) -> None:
    text = STUDY.replace(
        "{path: method.gate.kind, levels: [gumbel, open]}",
        "{path: optim, levels: {gumbel: {lr: 0.1}, open: {lr: 0.2}}}",
    )
    with pytest.raises(ConfigError, match="wherever both are given the same searched values"):
        plan(tmp_path, text)


RACE = STUDY.replace("seeds: 2", "seeds: 5") + "scheduler: {kind: race, first_seeds: 3, step: 1}\n"


def test_a_race_goes_on_without_an_arm_that_no_values_were_found_for(tmp_path: Path) -> None:
    *_, last = search(plan(tmp_path, RACE), objective=lambda cell: None if "open" in cell.line else 0.5)
    rounds = Rounds(
        last,
        progress=Progress(last, Console(file=io.StringIO())),
        log=RaceLog(last),
        fail=lambda cell, reason: None,
    )
    finish(rounds())
    assert rounds() == []
    assert rounds.finished
    assert "its search failed" in rounds.racing.standing.verdicts["filter=open"].reason
    after = plan(tmp_path, RACE)
    assert after.racing is not None
    assert after.racing.over
    assert not after.pending


def test_a_race_waits_for_arms_whose_search_goes_on(tmp_path: Path) -> None:
    made = plan(tmp_path, RACE, Options(only=("filter=gumbel",)))
    *_, last = search(made)
    while batch := [cell for cell in last.trials if cell.pending and "gumbel" in cell.line]:
        finish(batch)
        last = plan(tmp_path, RACE, Options(only=("filter=gumbel",)))
    assert last.racing is not None
    assert not last.racing.over


def test_gc_keeps_what_arms_had_before_their_search_went_on(tmp_path: Path) -> None:
    *_, last = search(plan(tmp_path))
    finish(last.cells)
    last.save()
    more = plan(tmp_path, STUDY.replace("trials: 5", "trials: 7"))
    assert not more.cells
    more.save()
    assert collector.find_leftovers(last.storage, removed=True) == []
