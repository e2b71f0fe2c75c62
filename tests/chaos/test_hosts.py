"""Runs and studies over hosts with addresses of their own: on storage that all see, with code that one lacks, through faults.

`make soak` makes twenty faults of a larger study (`tools/soak_hosts.py`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simlap.record.journal import read_cell, read_rows
from simlap.storage import Storage
from tests.chaos.host_faults import HOST_KINDS, OnHosts, felt, schedule_on_hosts, shortcomings
from tests.chaos.host_store import fetch_s3, serve_s3
from tests.chaos.hosts import HEAD, Hosts
from tests.chaos.kills import Killed, Planned, Ran, check, disturb
from tests.chaos.namespaces import lacking
from tests.chaos.record import Journals, metrics_of
from tests.chaos.study import Size, planned, run_plainly, write_study
from tests.integration.blank import blank_store
from tools.soak_hosts import page

SIZE = Size(arms=2, seeds=1, stage_epochs=16, epochs=4)
SEED = 3
needs_hosts = pytest.mark.skipif(lacking() is not None, reason=lacking() or "")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study file, with plain runs of everything beside it."""
    folder = tmp_path_factory.mktemp("hosts")
    study = write_study(folder, SIZE)
    (folder / "mlflow.db").write_bytes(blank_store())
    run_plainly(study, folder / "plain")
    return study


@pytest.fixture(scope="module")
def hosts(study: Path) -> Iterator[Hosts]:
    """Two workers, one of them without simlap."""
    with Hosts(2, own=[study.parent / "disk"], bare=["h2"]) as hosts:
        yield hosts


@pytest.mark.slow
@needs_hosts
def test_a_folder_that_every_host_has_for_itself_is_refused(hosts: Hosts, study: Path) -> None:
    done = hosts.call(
        HEAD, sys.executable, "-m", "simlap.cli", "run", "stage.yaml", "--address", hosts.address, "--storage", "disk/runs",
        cwd=study.parent,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[0] == "error: the cluster's nodes are not alike"
    # what the one without simlap lacks it gets first, and is asked of its storage then
    assert lines[1].startswith(f"1 of 2 nodes do not share --storage {study.parent}/disk/runs with this machine")
    assert lines[2].strip().startswith(f"{hosts.ip('h1')}: FileNotFoundError")
    assert lines[3].startswith("Valid: a folder that all nodes mount at the same path")
    left = hosts.call(HEAD, "find", str(study.parent / "disk"), "-type", "f")
    assert left.stdout == "", "nothing is left there"


@pytest.mark.slow
@needs_hosts
def test_a_run_over_two_hosts_on_s3_outlives_one_of_them(hosts: Hosts, study: Path, tmp_path: Path) -> None:
    query = serve_s3(hosts, "lab")
    log = tmp_path / "run.log"
    with log.open("wb") as file:
        run = hosts.popen(
            HEAD, sys.executable, "-m", "simlap.cli", "run", "stage.yaml", "--address", hosts.address,
            "--storage", f"s3://lab/runs?{query}", cwd=study.parent, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        wait_for(lambda: "\nepoch    2" in log.read_text() or run.poll() is not None, log)
        at_ms = time.time_ns() // 1_000_000
        hosts.power_off("h2")
        hosts.boot("h2")
        hosts.start_worker("h2")
        wait_for(lambda: run.poll() is not None, log)
    finally:
        run.kill()
    said = log.read_text()
    assert run.poll() == 0, said
    assert "lost after epoch" in said, said

    fetch_s3(hosts, f"s3://lab/runs?{query}", tmp_path / "runs")
    (cell,) = (cell for cell in planned(study, study.parent / "plain") if cell.experiment.resources.workers == 2)
    here, there = Storage(tmp_path / "runs"), Storage(study.parent / "plain")
    ours, theirs = (one.child("cells", cell.cell_id) for one in (here, there))
    assert (
        ours.read_json("result.json")["checkpoint"]["sha256"] == theirs.read_json("result.json")["checkpoint"]["sha256"]
    )
    found, expected = read_cell(here, cell.cell_id), read_cell(there, cell.cell_id)
    assert metrics_of(found) == metrics_of(expected)
    assert found.result == expected.result
    fault = Killed("host", 0.0, 0, "h2", [(cell.cell_id, 1)], at_ms=at_ms)
    print(felt(fault, tmp_path / "runs"))
    assert shortcomings(fault, tmp_path / "runs") == []
    assert sum(row["type"] == "start" for row in read_rows(ours)) == 2


@pytest.mark.slow
@needs_hosts
@pytest.mark.timeout(1200)
def test_a_study_over_two_hosts_survives_four_faults(hosts: Hosts, study: Path) -> None:
    runs = study.parent / "runs"
    cells = planned(study, runs)
    scene = OnHosts(hosts, [cell.cell_id for cell in cells if cell.experiment.resources.workers > 1])
    # all in the stage, which stands still while a host is booted; the head last, without which it trains to its end
    last = SIZE.in_stages - 3
    faults = [*schedule_on_hosts(SEED, ["worker", "host", "cut"], SIZE, latest=last - 1), Planned("head", last, 0.0)]
    ran = disturb(study, scene, faults, SEED, timeout_s=1100, apart=True)
    check(ran, study, study.parent / "plain")
    for fault in ran.killed:
        print(fault.kind, fault.victim, felt(fault, runs))
        ran.problems += shortcomings(fault, runs)
    assert ran.problems == []
    assert ran.launches == 2
    (seconds,), (said,) = scene.ended_s, scene.last_words
    print(f"the command ended {seconds:.0f} s after the head")
    assert 30 <= seconds < 60
    assert f"error: the head of the Ray cluster at {hosts.address} has not answered for 3" in said


def test_a_schedule_is_repeatable() -> None:
    faults = schedule_on_hosts(SEED, HOST_KINDS, SIZE)
    assert faults == schedule_on_hosts(SEED, HOST_KINDS, SIZE)
    assert faults != schedule_on_hosts(SEED + 1, HOST_KINDS, SIZE)
    assert sorted(fault.kind for fault in faults) == sorted(HOST_KINDS)
    assert all(1 <= fault.epochs <= 0.6 * SIZE.in_all for fault in faults)


def write_rows(runs: Path, cell: str, rows: dict[str, str]) -> None:
    journal = runs / "cells" / cell / "journal"
    journal.mkdir(parents=True)
    for name, row in rows.items():
        (journal / name).write_text(row + "\n")


def test_what_a_fault_did_is_read_from_the_journal(tmp_path: Path) -> None:
    write_rows(
        tmp_path,
        "abcdefgh12",
        {
            "h1.7-0001-00000.jsonl": '{"type": "start", "t": 1000, "from_epoch": 0}',
            "h1.7-0001-00001.jsonl": '{"type": "metrics", "t": 2000, "epoch": 1}',
            "h1.7-0001-00002.jsonl": '{"type": "metrics", "t": 3000, "epoch": 4}',
            "driver.1-0001-99999.jsonl": '{"type": "end", "t": 16000, "state": "failed", "epoch": 4}',
            "h2.9-0002-00000.jsonl": '{"type": "start", "t": 120000, "from_epoch": 1}',
            "h2.9-0002-00001.jsonl": '{"type": "metrics", "t": 125000, "epoch": 2}',
            "h2.9-0002-99999.jsonl": '{"type": "end", "t": 126000, "state": "done", "epoch": 4}',
        },
    )
    fault = Killed("raylet", 3.5, 4, "h1", [("abcdefgh12", 1)], at_ms=3500)
    (one,) = felt(fault, tmp_path)
    assert (one.noticed_s, one.again_s, one.redone) == (12.5, 121.5, 3)
    assert shortcomings(fault, tmp_path) == [
        "raylet at 4 s, run abcdefgh: noticed after 12.5 s, not 10",
        "raylet at 4 s, run abcdefgh: trained again after 122 s, not 120",
        "raylet at 4 s, run abcdefgh: 3 epochs trained twice, more than 2",
    ]
    cut = Killed("cut", 3.5, 4, "h1", [("abcdefgh12", 1)], at_ms=3500)
    assert len(shortcomings(cut, tmp_path)) == 2, "a cut link may take longer"
    assert felt(Killed("driver", 3.5, 4, "", [("abcdefgh12", 2)], at_ms=3500), tmp_path)[0].noticed_s is None


def test_the_page_says_what_was_felt_and_what_does_not_hold(tmp_path: Path) -> None:
    write_rows(
        tmp_path,
        "abcdefgh12",
        {
            "h1.7-0001-00000.jsonl": '{"type": "start", "t": 1000, "from_epoch": 0}',
            "h1.7-0001-99999.jsonl": '{"type": "end", "t": 5000, "state": "failed", "epoch": 0}',
            "h2.9-0002-00000.jsonl": '{"type": "start", "t": 20000, "from_epoch": 0}',
            "h2.9-0002-00001.jsonl": '{"type": "metrics", "t": 24000, "epoch": 1}',
        },
    )
    journals = Journals(tmp_path, ["abcdefgh12"])
    ran = Ran([Killed("host", 12.3, 1, "h1", [("abcdefgh12", 1)], at_ms=4000)], [], 1, 30.0, journals)
    text = page(ran, tmp_path, seed=5, plain_s=10.0, ended_s=[31.0], cut_with_defaults_s=62.0)
    assert "| 1 | 12 | 1 | host | h1 | `abcdefgh` attempt 1 | 1.0 s | 20 s | 0 |" in text
    assert "| host | 1 | 1.0 s | 20 s | 0 |" in text
    assert "**1 faults: the study finished, no cell was lost" in text
    ran.problems.append("a cell is lost")
    text = page(ran, tmp_path, seed=5, plain_s=10.0, ended_s=[], cut_with_defaults_s=None)
    assert "**1 claims do not hold.**" in text
    assert "- a cell is lost" in text


def wait_for(condition: Callable[[], bool], log: Path, seconds: float = 400.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not happen in time:\n{log.read_text()[-6000:]}"
        time.sleep(0.1)
