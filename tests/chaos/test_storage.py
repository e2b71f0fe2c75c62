"""A storage that is elsewhere and refuses, is silent or slow for a while, or for good: a real S3 server behind a bad link."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from simlap import storage as module
from simlap.record.journal import cell_storage, read_cell, read_rows
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.train.world import World
from tests.chaos.test_checkpoints import outcome, run, task
from tests.integration.object_store import Link, Mood, make_bucket, query_of, s3_server
from tests.integration.studies import Lab

pytestmark = pytest.mark.slow

AWAY_S = 4.0


@pytest.fixture(name="port", scope="module")
def _port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture(name="link")
def _link(port: int) -> Iterator[Link]:
    with Link(port, delay_s=0.05) as link:
        yield link


@pytest.fixture(name="undisturbed", scope="module")
def _undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    storage = Storage(tmp_path_factory.mktemp("undisturbed"))
    run(storage)
    return outcome(storage)


@pytest.mark.parametrize("mood", ["refusing", "silent", "slow"])
def test_a_while_of_it_costs_time_alone(mood: Mood, link: Link, undisturbed: dict[str, object]) -> None:
    storage = Storage(make_bucket(link.port, mood)).child("runs")

    def mend() -> None:
        link.mood = "well"

    for progress in run_cell(task(storage), World()):
        if progress.epoch == 1 and link.mood == "well" and not link.met:
            link.mood = mood
            if mood != "slow":
                threading.Timer(AWAY_S, mend).start()
    mend()
    assert link.met[mood] >= 3, "nothing was asked in the meantime"
    assert outcome(storage) == undisturbed
    starts = [row for row in read_rows(cell_storage(storage, task(storage).cell_id)) if row["type"] == "start"]
    assert len(starts) == 1, "it was one attempt"


def test_for_good_is_an_error_and_the_run_goes_on_later(
    link: Link, undisturbed: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(make_bucket(link.port, "gone")).child("runs")
    monkeypatch.setattr(module, "_PAUSES_S", (0.1,))
    cell_id = task(storage).cell_id

    def until_gone() -> None:
        for progress in run_cell(task(storage), World()):
            if progress.epoch == 2:
                link.mood = "refusing"

    with pytest.raises(OSError, match=f"{cell_id}.*AWS Error NETWORK_CONNECTION"):
        until_gone()
    link.mood = "well"
    view = read_cell(storage, cell_id)
    assert view.state == "running", "nobody could say that it ended"
    assert view.epoch >= 1
    run(storage)
    assert outcome(storage) == undisturbed


def test_a_command_says_at_once_that_nobody_is_there(tmp_path: Path, link: Link) -> None:
    link.mood = "refusing"
    lab = Lab(tmp_path)
    done = lab.run("plan", "study.yaml", "--storage", f"s3://gone/runs?{query_of(link.port)}")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: storage 's3://gone/runs")
    assert "does not answer, or refuses: " in line
