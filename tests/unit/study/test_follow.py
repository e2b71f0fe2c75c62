"""A study followed by whoever only reads: when its launch has ended, what its budget is, and what a log says of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simlap.config import yaml
from simlap.storage import Storage
from simlap.study.budget import Use
from simlap.study.events import EventLog
from simlap.study.follow import Follower, watch
from simlap.study.lease import Lease
from simlap.study.plan import make_plan
from simlap.study.pulse import Pulse
from simlap.study.spec import load_study
from tests.tiny import TREE
from tests.unit.study.pretend import EPOCH_S, pretend

STUDY = """
name: small
base: base.yaml
factors: {filter: {path: method.gate.kind, levels: [gumbel, open]}}
baseline: {filter: gumbel}
seeds: SEEDS
budget: {device_hours: 4, wall_hours: 2, cells: 3}
"""


class Launched:
    """What a launch leaves, event by event."""

    def __init__(self, folder: Path, seeds: int = 2) -> None:
        (folder / "base.yaml").write_text(yaml.dump(TREE))
        (folder / "study.yaml").write_text(STUDY.replace("SEEDS", str(seeds)))
        self.storage = Storage(folder / "runs")
        self.folder = self.storage.child("studies", "small")
        self.plan = make_plan(load_study(folder / "study.yaml"), self.storage)
        self.plan.save()
        self.events = EventLog(self.folder)

    def hold(self, **changes: Any) -> None:
        """The lease, as of a launch on another machine."""
        lease = {"token": "x", "counter": 1, "host": "elsewhere", "pid": 1}
        self.folder.write_json("lease.json", lease | changes)

    def start(self, cell: int, epoch: int = 1) -> None:
        """A cell runs, and has trained some epochs."""
        planned = self.plan.cells[cell]
        pretend(planned, "running", epoch)
        self.events.write("cell_started", **planned.place, seed=planned.seed)

    def end(self, cell: int) -> None:
        planned = self.plan.cells[cell]
        pretend(planned)
        self.events.write("cell_started", **planned.place, seed=planned.seed)
        self.events.write("cell_done", **planned.place, epoch=2)

    def fail(self, cell: int, reason: str) -> None:
        planned = self.plan.cells[cell]
        pretend(planned, "failed")
        self.events.write("cell_failed", **planned.place, attempt=1, failure="other", reason=reason)

    def die(self) -> None:
        """As `kill -9` leaves it: on this machine, with a process number that is another's now."""
        with Lease(self.folder, beat_s=0.01):
            held = self.folder.read_json("lease.json")
        self.folder.write_json("lease.json", {**held, "process_started": held["process_started"] - 1000})


def watched(launched: Launched, **options: Any) -> str:
    out = io.StringIO()
    watch(launched.storage, "small", Console(file=out, width=100), every_s=0.0, **options)
    return out.getvalue()


def test_a_launch_that_has_not_begun_to_run_cells_is_waited_for(tmp_path: Path) -> None:
    launched = Launched(tmp_path)
    launched.events.write("launch", pending=4)
    launched.events.write("launch_ended", finished=False)
    seen = Follower(launched.storage, "small")
    seen.look()
    assert not seen.running, "nobody holds the study"
    launched.hold()
    found = []
    for event in (None, None, "launch", None, "launch_ended", None):
        if event:
            launched.events.write(event)
        seen.look()
        found.append(seen.running)
    assert found == [True, True, True, True, False, False]
    assert not seen.died


def test_a_killed_launch_has_ended_and_so_have_its_cells(tmp_path: Path) -> None:
    launched = Launched(tmp_path)
    launched.hold()
    launched.events.write("launch", pending=4)
    launched.start(0)
    seen = Follower(launched.storage, "small")
    seen.look()
    assert (seen.running, seen.died) == (True, False)
    assert "1 running" in seen.study.totals()
    launched.die()
    seen.look()
    assert (seen.running, seen.died) == (False, True)
    assert "running" not in seen.study.totals()
    assert seen.study.arms[0].cells[0].state == "interrupted"
    told = watched(launched)
    assert "interrupted" in told
    assert "its launch is gone" in told


def test_a_lease_that_is_gone_without_a_word_is_the_end(tmp_path: Path) -> None:
    launched = Launched(tmp_path)
    launched.hold()
    launched.events.write("launch", pending=4)
    seen = Follower(launched.storage, "small")
    seen.look()
    launched.folder.delete("lease.json")
    seen.look()
    assert (seen.running, seen.died) == (False, True)


def test_the_end_of_a_launch_that_was_taken_over_is_not_that_of_the_next(tmp_path: Path) -> None:
    launched = Launched(tmp_path)
    launched.events.write("launch", pending=4)
    launched.hold()
    seen = Follower(launched.storage, "small")
    EventLog(launched.folder).write("launch", pending=4)
    seen.look()
    launched.events.write("launch_ended", finished=False)
    seen.look()
    assert seen.running


def test_what_a_killed_launch_left_running_is_not_run_by_the_next_one(tmp_path: Path) -> None:
    launched = Launched(tmp_path)
    launched.events.write("launch", pending=4)
    launched.start(0)
    launched.start(1)
    launched.events = EventLog(launched.folder)
    launched.events.write("launch", pending=4)
    launched.start(1)
    launched.hold()
    seen = Follower(launched.storage, "small")
    seen.look()
    assert [arm.cells[0].state for arm in seen.study.arms] == ["interrupted", "running"]


def test_a_counter_that_stands_still_is_that_of_a_dead_launch(tmp_path: Path) -> None:
    now, folder = 0.0, Storage(tmp_path)
    pulse = Pulse(folder, still_s=6.0, clock=lambda: now)
    assert pulse.look() == "none"
    folder.write_json("lease.json", {"token": "x", "counter": 1, "host": "elsewhere", "pid": 1})
    assert pulse.look() == "alive"
    now = 5.0
    assert pulse.look() == "alive"
    folder.write_json("lease.json", {"token": "x", "counter": 2, "host": "elsewhere", "pid": 1})
    now = 8.0
    assert pulse.look() == "alive"
    now = 13.0
    assert pulse.look() == "alive"
    now = 15.0
    assert pulse.look() == "dead"
    folder.write_json("lease.json", {"token": "y", "counter": 2, "host": "elsewhere", "pid": 1})
    assert pulse.look() == "alive", "another launch has taken over"


def test_a_study_whose_plan_is_being_made_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = Launched(tmp_path)
    plan = launched.folder.read_json("plan.json")
    launched.folder.delete("plan.json")
    launched.hold()

    def go_on(_: float) -> None:
        launched.folder.write_json("plan.json", plan)
        launched.folder.delete("lease.json")

    monkeypatch.setattr("simlap.study.follow.time.sleep", go_on)
    assert "0/4 cells" in watched(launched)


def test_every_limit_of_the_budget_is_shown(tmp_path: Path) -> None:
    launched = Launched(tmp_path)
    launched.hold()
    launched.events.write("launch", pending=4)
    launched.end(0)
    launched.start(1)
    seen = Follower(launched.storage, "small")
    seen.look()
    device, wall, cells = seen.study.budget()
    trained = launched.plan.cells[0].stage.experiment.train.epochs + 1
    assert device.used == pytest.approx(trained * EPOCH_S / 3600)
    assert (device.limit, wall.limit) == (4, 2)
    assert wall.used >= 0
    assert str(cells) == "2 of 3 cells begun"
    assert seen.study.summary()[1].startswith("budget: ")


def test_the_budget_counts_cells_that_the_study_has_no_more(tmp_path: Path) -> None:
    launched = Launched(tmp_path)
    launched.events.write("launch", pending=4)
    launched.end(0)
    saved = launched.folder.read_json("plan.json")
    saved["arms"] = saved["arms"][1:]
    launched.folder.write_json("plan.json", saved)
    device, _, cells = Follower(launched.storage, "small").study.budget()
    assert device.used > 0
    assert cells.used == 1


def test_a_raised_budget_is_that_of_the_next_launch(tmp_path: Path) -> None:
    launched = Launched(tmp_path)
    seen = Follower(launched.storage, "small")
    saved = launched.folder.read_json("plan.json")
    launched.folder.write_json("plan.json", {**saved, "budget": {"cells": 9}})
    launched.events.write("launch", pending=4)
    seen.look()
    assert list(map(str, seen.study.budget())) == ["0 of 9 cells begun"]


def test_a_plan_of_before_knows_no_budget(tmp_path: Path) -> None:
    launched = Launched(tmp_path)
    saved = launched.folder.read_json("plan.json")
    del saved["budget"]
    launched.folder.write_json("plan.json", saved)
    assert Follower(launched.storage, "small").study.budget() == []


def test_a_log_tells_failures_when_they_happen_and_totals_now_and_then(tmp_path: Path) -> None:
    launched = Launched(tmp_path, seeds=10)
    launched.events.write("launch", pending=20)
    launched.fail(0, "an old one")
    launched.events = EventLog(launched.folder)
    launched.events.write("launch", pending=20)
    launched.hold()
    looks = 0

    def happen() -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            launched.fail(2, "OSError: the disk is full")
        elif looks <= 20:
            launched.end(looks - 1)
        return looks == 22

    told = watched(launched, until=happen)
    assert "an old one" not in told, "the launch before"
    assert told.count("OSError: the disk is full") == 1
    assert told.count("\nfailed   filter=") == 1
    tables = told.count("arm ")
    assert 3 <= tables <= 6, "at first, at the end, and not for every cell"
    assert 4 <= told.count("cells begun") <= 12, "the budget with the totals, every tenth of the cells"
    assert told.rstrip().splitlines()[-2].startswith("19/20 cells, 1 failed")
    assert all(len(line) <= 80 for line in told.splitlines() if not line.startswith("failed"))


def test_on_a_terminal_the_height_is_kept_until_the_end(tmp_path: Path) -> None:
    launched = Launched(tmp_path)
    looks = iter([False, True])
    out = io.StringIO()
    console = Console(file=out, width=80, height=4, force_terminal=True)
    watch(launched.storage, "small", console, every_s=0.0, until=lambda: next(looks))
    first, _, last = out.getvalue().partition("cells begun")
    assert "… 2: 2 waiting" in first
    assert "filter=open" not in first
    assert "filter=open" in last, "the last one is whole"


def test_what_is_hardly_used_is_none() -> None:
    assert [str(Use(used, 4, "hours")) for used in (1e-6, 0.05, 3.14159, 123.4)] == [
        "0 of 4 hours", "0.05 of 4 hours", "3.14 of 4 hours", "123 of 4 hours",
    ]  # fmt: skip
