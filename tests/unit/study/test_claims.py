"""Two launches whose studies share cells: each cell is run by one of them at a time."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from simlap.config import yaml
from simlap.record.journal import cell_storage, read_rows
from simlap.run.cluster import Node
from simlap.run.failures import Retries
from simlap.storage import Storage
from simlap.study.claims import Claims
from simlap.study.events import EventLog
from simlap.study.execute import _Over
from simlap.study.feed import CellFeed
from simlap.study.lease import BEAT_S, POLLS, Lease
from simlap.study.plan import Plan, make_plan
from simlap.study.progress import Progress
from simlap.study.schedule import InOrder
from simlap.study.spec import load_study
from simlap.study.stale import left_behind
from simlap.study.waiting import Attempt
from simlap.study.watch import StudyCallback
from tests.tiny import TREE
from tests.unit.study.pretend import pretend, take_over


@contextmanager
def launch(storage: Storage, name: str) -> Iterator[Claims]:
    with Lease(storage.child("studies", name), beat_s=0.01) as lease:
        yield Claims(storage, name, lease)


def test_the_second_is_told_who_has_it_until_it_is_given_back(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with launch(storage, "a") as one, launch(storage, "b") as two:
        assert one.take("x") is None
        assert one.take("x") is None, "its own, again"
        holder = two.take("x")
        assert holder is not None
        assert str(holder).startswith("study a, process ")
        assert two.holder("x") == holder
        two.release("x")
        assert two.take("x") == holder, "nobody gives back what is another's"
        one.release("x")
        assert two.holder("x") is None
        assert two.take("x") is None
    assert one.holder("y") is None, "nobody's"


def test_what_an_ended_launch_left_is_void(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with launch(storage, "a") as gone:
        assert gone.take("x") is None
    with launch(storage, "a") as again, launch(storage, "b") as other:
        assert other.take("x") is None, "a's lease is another launch's now"
        assert again.take("x") is not None


def test_a_lease_that_stands_still_is_dead_by_the_readers_clock_alone(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    now = 0.0
    with launch(storage, "b") as claims:
        mine = claims._own
        two = Claims(storage, "b", Lease(storage.child("studies", "b")), clock=lambda: now)
        lease = {"token": "t", "counter": 5, "host": "far", "machine": "far", "pid": 1, "process_started": 0}
        folder = storage.child("studies", "a")
        folder.write_json("lease.json", lease)
        storage.write_json("cells/x/claim.json", {**vars(mine), "token": "t", "study": "a"})
        assert two.take("x") is not None, "it may be alive"
        now += 0.9 * POLLS * BEAT_S
        assert two.take("x") is not None
        folder.write_json("lease.json", {**lease, "counter": 6})
        assert two.take("x") is not None, "it has moved"
        now += 0.9 * POLLS * BEAT_S
        assert two.take("x") is not None
        now += 0.2 * POLLS * BEAT_S
        assert two.take("x") is None


def test_who_insists_waits_until_a_dead_launch_is_known_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, now = Storage(tmp_path), 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("simlap.study.claims.time", SimpleNamespace(sleep=sleep))
    claims = Claims(storage, "b", Lease(storage.child("studies", "b")), clock=lambda: now)
    lease = {"token": "t", "counter": 5, "host": "far", "machine": "far", "pid": 1, "process_started": 0}
    storage.child("studies", "a").write_json("lease.json", lease)
    for cell_id in ("x", "y"):
        storage.write_json(f"cells/{cell_id}/claim.json", {**vars(claims._own), "token": "t", "study": "a"})
    assert claims.take_from_dead("x") is None
    assert POLLS * BEAT_S < now < (POLLS + 1) * BEAT_S
    waited = now
    assert claims.take_from_dead("y") is None
    assert now == waited, "once for all that it had"


def test_a_claim_in_pieces_is_nobodys(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write("cells/x/claim.json", b'{"tok')
    with launch(storage, "a") as claims:
        assert claims.holder("x") is None
        assert claims.take("x") is None


def test_of_many_at_the_same_moment_one_has_it(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    leases = [Lease(storage.child("studies", str(number)), beat_s=0.01) for number in range(8)]
    ready = threading.Barrier(len(leases))

    def take(number: int) -> list[bool]:
        claims = Claims(storage, str(number), leases[number])
        with leases[number]:
            ready.wait()
            taken = [claims.take(str(cell)) is None for cell in range(20)]
            ready.wait()
        return taken

    with ThreadPoolExecutor(len(leases)) as pool:
        taken = list(pool.map(take, range(len(leases))))
    assert [sum(one[cell] for one in taken) for cell in range(20)] == [1] * 20


class Feed(CellFeed):
    """Names the attempts that it would give to Tune."""

    def _trial(self, trial_id: str, attempt: Attempt) -> Any:
        return trial_id, attempt


@dataclass
class Launch:
    """A launch with a feed of its own, whose trials the test ends."""

    plan: Plan
    feed: Feed
    held: list[tuple[str, str]] = field(default_factory=list)
    elsewhere: dict[str, str] = field(default_factory=dict)

    def start(self) -> list[tuple[str, Attempt]]:
        return cast("list[tuple[str, Attempt]]", [*iter(self.feed.next_trial, None)])

    def end(self, trial: tuple[str, Attempt], state: str = "done") -> None:
        pretend(trial[1].cell, state)
        self.feed.on_trial_complete(trial[0])
        self.feed.release(self.feed.attempts.pop(trial[0]))


STUDY = """
name: {name}
base: base.yaml
factors: {{temperature: {{path: method.temperature, levels: [{levels}]}}}}
baseline: {{temperature: 0.1}}
seeds: 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    return tmp_path


@contextmanager
def applied(folder: Path, name: str, levels: str, room: int = 1) -> Iterator[Launch]:
    file = folder / f"{name}.yaml"
    file.write_text(STUDY.format(name=name, levels=levels))
    storage = Storage(folder / "runs")
    plan = make_plan(load_study(file), storage)
    with launch(storage, name) as claims:
        feed = Feed(
            [cell for cell in plan.cells if cell.pending], nodes=lambda: {"a": Node(room, 0)},
            make_config=lambda attempt: {}, trainables=("one", "group"), head="h", claims=claims,
        )  # fmt: skip
        going = Launch(plan, feed)
        feed.on_held = lambda attempt, holder: going.held.append((attempt.cell.line, holder.study))
        feed.on_elsewhere = lambda attempt, facts: going.elsewhere.update({attempt.cell.line: facts.state})
        yield going


def applied_plan(folder: Path, name: str) -> Plan:
    return make_plan(load_study(folder / f"{name}.yaml"), Storage(folder / "runs"))


def lines(trials: list[tuple[str, Attempt]]) -> list[str]:
    return [attempt.cell.line.removeprefix("temperature=") for _, attempt in trials]


def test_two_launches_share_cells_and_none_is_run_twice(folder: Path) -> None:
    """What the other one is at work on comes last; what it has done is taken."""
    with applied(folder, "a", "0.1, 0.2, 0.3") as one, applied(folder, "b", "0.1, 0.3, 0.4", room=2) as two:
        first = one.start()
        assert lines(first) == ["0.1"]
        second = two.start()
        assert lines(second) == ["0.3", "0.4"], "0.1 is a's"
        assert two.held == [("temperature=0.1", "a")]
        one.end(first[0])
        middle = one.start()
        assert lines(middle) == ["0.2"]
        one.end(middle[0])
        assert one.start() == []
        assert one.held == [("temperature=0.3", "b")]
        for trial in second:
            two.end(trial)
        assert two.feed.is_finished()
        assert not two.feed.reclaim(), "nothing is left to be run"
        assert two.elsewhere == {"temperature=0.1": "done"}
        assert not one.feed.reclaim()
        assert one.elsewhere == {"temperature=0.3": "done"}
        assert not one.feed.held
    for cell in (*one.plan.cells, *two.plan.cells):
        rows = read_rows(cell_storage(one.plan.storage, cell.cell_id))
        assert [row["type"] for row in rows].count("start") == 1
        assert not (folder / f"runs/cells/{cell.cell_id}/claim.json").exists()


def test_what_the_other_did_not_finish_is_taken_over(folder: Path) -> None:
    with applied(folder, "b", "0.1, 0.2") as two:
        with applied(folder, "a", "0.1, 0.2", room=2) as one:
            trials = one.start()
            assert two.start() == []
            assert len(two.feed.held) == 2
            one.end(trials[0], "interrupted")
            pretend(trials[1][1].cell, "running", epoch=2)  # and its launch ends without another word
        assert two.feed.reclaim()
        resumed = two.start()
        assert lines(resumed) == ["0.1"]
        assert resumed[0][1].cell.facts.epoch == 1, "as it is now"
        two.end(resumed[0])
        (last,) = two.start()
        assert last[1].cell.view.epoch == 2
        two.end(last)
        assert two.feed.is_finished()


def test_what_the_other_runs_under_other_code(folder: Path) -> None:
    """What it had begun is left to it, what it comes to begin is waited for; both are stale."""
    with applied(folder, "a", "0.1, 0.2", room=2) as one:
        begun, later = one.start()
        pretend(begun[1].cell, "running", 1, code="old")
        with applied(folder, "b", "0.1, 0.2, 0.3") as two:
            assert lines(two.start()) == ["0.3"]
            assert two.held == [("temperature=0.2", "a")]
            assert "Another launch may be at work on 1 of them" in str(left_behind(two.plan))
            pretend(later[1].cell, code="old")
            one.feed.release(later[1])
            assert not two.feed.reclaim()
            assert two.elsewhere == {"temperature=0.2": "done"}
    assert [cell.action for cell in applied_plan(folder, "b").cells] == ["stale", "stale", "new"]


def test_what_the_other_gave_up_is_given_up(folder: Path) -> None:
    with applied(folder, "a", "0.1, 0.2") as one, applied(folder, "b", "0.1, 0.2") as two:
        (trial,) = one.start()
        (other,) = two.start()
        one.end(trial, "failed")
        assert not two.feed.reclaim()
        assert two.elsewhere == {"temperature=0.1": "failed"}
        two.end(other)
        assert two.feed.is_finished()


def test_what_the_other_failed_at_when_it_died_is_tried(folder: Path) -> None:
    """It had not yet decided whether to try it again."""
    with applied(folder, "b", "0.1, 0.2") as two:
        with applied(folder, "a", "0.1, 0.2") as one:
            (trial,) = one.start()
            (other,) = two.start()
            pretend(trial[1].cell, "failed")
        assert two.feed.reclaim()
        two.end(other)
        (taken,) = two.start()
        assert taken[1].cell.cell_id == trial[1].cell.cell_id
        assert two.elsewhere == {}


def test_who_was_superseded_waits_for_who_took_over(folder: Path) -> None:
    with applied(folder, "a", "0.1, 0.2") as one, applied(folder, "b", "0.1, 0.2") as two:
        (trial,) = one.start()
        assert not one.feed.lost(trial[1]), "its own"
        cell_storage(one.plan.storage, trial[1].cell.cell_id).delete("claim.json")
        (taken,) = two.start()
        assert taken[1].cell.cell_id == trial[1].cell.cell_id
        assert one.feed.lost(trial[1])
        one.feed.on_trial_complete(trial[0])
        assert lines(one.start()) == ["0.2"]


def test_a_failure_counts_when_its_launch_has_let_the_cell_go(folder: Path) -> None:
    """Until then it may be about to try the cell again."""
    with applied(folder, "a", "0.1, 0.2") as one:
        (trial,) = one.start()
        pretend(trial[1].cell, "failed")
        with applied(folder, "b", "0.1") as two:
            assert [cell.action for cell in two.plan.cells] == ["resume"]
            assert two.start() == []
            assert two.held == [("temperature=0.1", "a")]
        one.end(trial, "failed")
    assert [cell.action for cell in applied_plan(folder, "b").cells] == ["given_up"]


def test_a_storage_that_fails_costs_a_look_and_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune would kill every running cell."""

    def refuse(*_: object) -> None:
        raise OSError("stale file handle")

    with applied(folder, "a", "0.1") as one, applied(folder, "b", "0.1, 0.2", room=2) as two:
        with monkeypatch.context() as broken:
            broken.setattr(Claims, "take", refuse)
            assert two.start() == []
        (trial,) = one.start()
        assert lines(two.start()) == ["0.2"]
        with monkeypatch.context() as broken:
            broken.setattr(Claims, "is_abandoned", refuse)
            assert not two.feed.reclaim()
        assert len(two.feed.held) == 1
        one.end(trial)
        assert not two.feed.reclaim()
        assert two.elsewhere == {"temperature=0.1": "done"}


def test_a_launch_that_lost_its_study_hands_out_and_records_nothing_more(folder: Path) -> None:
    with applied(folder, "a", "0.1, 0.2, 0.3", room=2) as one:
        running = one.start()
        assert len(running) == 2
        claims = one.feed._claims
        assert claims is not None
        study = one.plan.storage.child("studies", "a")
        events = EventLog(study, lost=claims.lease.is_lost)
        progress = Progress(one.plan, Console(file=io.StringIO()))
        callback = StudyCallback(one.plan, one.feed, progress, events, InOrder(), Retries())
        over = _Over(None, one.feed)
        assert not over.stop_all()
        take_over(claims.lease)
        assert over.stop_all()
        assert one.feed.next_trial() is None
        for (trial_id, attempt), told in zip(
            running, (callback.on_trial_complete, callback.on_trial_error), strict=True
        ):
            trial = cast("Any", SimpleNamespace(trial_id=trial_id, error_file=None))
            callback.on_trial_start(0, [], trial)
            one.feed.on_trial_complete(trial_id)
            told(0, [], trial)
            cell = cell_storage(one.plan.storage, attempt.cell.cell_id)
            assert read_rows(cell) == [], "what became of it is not this one's to say"
            assert progress.cells[attempt.cell.cell_id].state == "interrupted"
        assert one.feed.is_finished()
        assert one.feed.is_ended
        assert not one.feed.attempts
        assert study.list("events") == []
