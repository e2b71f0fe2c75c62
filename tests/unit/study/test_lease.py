"""One launch at a time holds a study."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from simlap.errors import UserError
from simlap.storage import Storage
from simlap.study.lease import Lease, LostLeaseError
from tests.unit.study.pretend import silence, take_over


def test_released_at_the_end(tmp_path: Path) -> None:
    with Lease(Storage(tmp_path), beat_s=0.05):
        assert (tmp_path / "lease.json").exists()
    assert not (tmp_path / "lease.json").exists()


def test_the_second_launch_refuses_and_names_the_holder(tmp_path: Path) -> None:
    with (
        Lease(Storage(tmp_path), beat_s=0.05),
        pytest.raises(UserError, match=f"process {os.getpid()} on {socket.gethostname()}"),
        Lease(Storage(tmp_path), beat_s=0.2),
    ):
        pass


def test_a_dead_holder_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    with Lease(Storage(tmp_path), beat_s=0.05):
        held = Storage(tmp_path).read_json("lease.json")
    Storage(tmp_path).write_json("lease.json", {**held, "token": "x", "pid": int(gone.stdout)})
    with Lease(Storage(tmp_path), beat_s=0.05, polls=10**6) as lease:  # waiting for beats would take hours
        assert Storage(tmp_path).read_json("lease.json")["token"] == lease.token


def test_a_counter_that_stands_still_is_taken_over(tmp_path: Path) -> None:
    Storage(tmp_path).write_json("lease.json", {"token": "x", "counter": 7, "host": "elsewhere", "pid": 1})
    with Lease(Storage(tmp_path), beat_s=0.02, polls=3) as lease:
        assert Storage(tmp_path).read_json("lease.json")["token"] == lease.token


def test_a_process_number_given_away_is_not_the_holder(tmp_path: Path) -> None:
    with Lease(Storage(tmp_path), beat_s=0.05):
        held = Storage(tmp_path).read_json("lease.json")
    Storage(tmp_path).write_json(
        "lease.json", {**held, "token": "x", "process_started": held["process_started"] - 1000}
    )
    with Lease(Storage(tmp_path), beat_s=0.05, polls=10**6) as lease:
        assert Storage(tmp_path).read_json("lease.json")["token"] == lease.token


def test_a_holder_that_was_stopped_finds_out_before_it_writes(tmp_path: Path) -> None:
    with Lease(Storage(tmp_path), beat_s=0.01) as lease:
        assert not lease.is_lost()
        lease.check()
        take_over(lease)
        with pytest.raises(LostLeaseError, match="was taken over by process 7 on elsewhere"):
            lease.check()
    assert Storage(tmp_path).read_json("lease.json")["token"] == "other", "it stays the other one's"


def test_the_beat_stops_where_the_lease_is_anothers(tmp_path: Path) -> None:
    with Lease(Storage(tmp_path), beat_s=0.01) as lease:
        take_over(lease)
        lease._stop.clear()
        lease._run()
        assert lease.is_lost()
        assert Storage(tmp_path).read_json("lease.json")["token"] == "other"


def test_a_lease_that_is_gone_after_a_silence_was_anothers(tmp_path: Path) -> None:
    with Lease(Storage(tmp_path), beat_s=0.01) as lease:
        silence(lease)
        lease._beaten = math.inf  # just now
        Storage(tmp_path).delete("lease.json")
        assert not lease.is_lost(), "nobody can have come and gone since the last beat"
        lease._look()
        assert not lease.is_lost()
        silence(lease)
        assert lease.is_lost()


def test_a_storage_that_is_away_takes_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: Storage, path: str) -> bytes:
        raise OSError("stale file handle")

    with Lease(Storage(tmp_path), beat_s=0.01) as lease:
        take_over(lease)
        lease.beat_s = 3600.0
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "read", away)
            assert not lease.is_lost(), "not known yet"
        assert not lease.is_lost(), "it is not asked again at once"
        lease._looked = -math.inf
        assert lease.is_lost()
