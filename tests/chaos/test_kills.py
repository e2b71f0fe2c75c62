"""Five kills of a small study on a real cluster of two raylets, one of each kind at least. `make soak` makes fifty."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.cluster import Raylets
from tests.chaos.kills import KINDS, Killed, OnRaylets, Planned, Ran, check, disturb, schedule
from tests.chaos.record import Journals
from tests.chaos.study import Size, run_plainly, write_study
from tools.soak_kills import page

SIZE = Size(arms=4, seeds=1, stage_epochs=8, epochs=4)
SEED = 54


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_survives_five_kills(tmp_path: Path) -> None:
    study = write_study(tmp_path, SIZE)
    run_plainly(study, tmp_path / "plain")
    with Raylets(2) as cluster:
        ran = disturb(study, OnRaylets(cluster), schedule(SEED, 5, SIZE), SEED, timeout_s=1700)
    check(ran, study, tmp_path / "plain")
    assert {kill.kind for kill in ran.killed} == set(KINDS)
    assert ran.problems == []
    assert ran.launches == 1 + sum(kill.kind == "driver" for kill in ran.killed)


def test_a_schedule_is_repeatable_and_leaves_no_kind_out() -> None:
    kills = schedule(SEED, 50, SIZE)
    assert kills == schedule(SEED, 50, SIZE)
    assert kills != schedule(SEED + 1, 50, SIZE)
    counts = [sum(kill.kind == kind for kill in kills) for kind in KINDS]
    assert sum(counts) == 50
    assert set(counts) <= {12, 13}
    assert all(kill.epochs < SIZE.in_stages for kill in kills if kill.kind == "worker")
    assert all(kill.epochs < SIZE.in_all for kill in kills)


def test_the_page_says_what_was_killed_and_what_does_not_hold(tmp_path: Path) -> None:
    journal = tmp_path / "cells/abcdefgh12/journal"
    journal.mkdir(parents=True)
    (journal / "vm.7-0001-00000.jsonl").write_text('{"type": "start", "from_epoch": 0}\n')
    (journal / "vm.7-0001-00001.jsonl").write_text('{"type": "metrics", "epoch": 1}\n')
    (journal / "vm.9-0002-00000.jsonl").write_text('{"type": "start", "from_epoch": 1}\n')
    (journal / "vm.9-0002-99999.jsonl").write_text('{"type": "end", "state": "done"}\n')
    journals = Journals(tmp_path, ["abcdefgh12", "new"])
    journals.look()
    assert journals.epochs() == 1
    assert journals.running({7}) == [], "its second attempt is the newest"
    killed = [Killed("actor", 12.3, 1, "pid 7", [("abcdefgh12", 1)], 4.6), Killed("raylet", 20.0, 1, "pid 8", [])]
    ran = Ran(killed, [], 1, 30.0, journals)
    text = page(ran, 5, 10.0)
    assert "| 1 | 12 | 1 | actor | pid 7 | `abcdefgh` attempt 1 | 5 s; `abcdefgh` attempt 2 from epoch 1 |" in text
    assert "| 2 | 20 | 1 | raylet | pid 8 | none | – |" in text
    assert "**2 kills: the study finished, no cell was lost" in text
    ran.left.append(Planned("worker", 3, 0.0))
    ran.problems.append("a cell is lost")
    assert "**1 claims do not hold.**" in page(ran, 5, 10.0)
    assert "- a cell is lost" in page(ran, 5, 10.0)
