"""Five kills of a small study on a real cluster of two raylets, one of each kind at least. `make soak` makes fifty."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.cluster import Raylets
from tests.chaos.kills import KINDS, check, disturb, schedule
from tests.chaos.study import Size, run_plainly, write_study

SIZE = Size(arms=4, seeds=1, stage_epochs=8, epochs=4)
SEED = 54


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_survives_five_kills(tmp_path: Path) -> None:
    study = write_study(tmp_path, SIZE)
    run_plainly(study, tmp_path / "plain")
    with Raylets(2) as cluster:
        ran = disturb(study, cluster, schedule(SEED, 5, SIZE), SEED, timeout_s=800)
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
