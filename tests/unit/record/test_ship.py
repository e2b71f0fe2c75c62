"""The shipping process, seen from its driver."""

from __future__ import annotations

import logging
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from simlap.record import ship
from simlap.record.mlflow import Projected
from simlap.storage import Storage


def test_who_lost_the_study_ends_its_shipping_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    def endless(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return real(["sleep", "1000"], **options)

    monkeypatch.setattr(subprocess, "Popen", endless)
    with ship.BackgroundShipper(Storage(tmp_path), "small", "sqlite:///x.db") as shipper:
        shipper.abandon()
        assert shipper._process.returncode == -9, "killed, and waited for"
    assert shipper.report is not None
    assert shipper.report.errors == []


def test_a_server_that_stays_away_is_said_once_and_once_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "simlap.ship")
    shipper = ship.Shipper(Storage(tmp_path), "small", "http://host")
    answers: list[Exception | None] = [
        *(ConnectionError("no route to http://me:secret@host") for _ in range(30)), TimeoutError("slow"), None, None,
        ConnectionError("again"), None,
    ]  # fmt: skip

    def project() -> Projected:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return Projected(experiment_id="1")

    monkeypatch.setattr(shipper._projector, "project", project)
    done = [shipper.attempt() for _ in range(31)]
    assert not any(done)
    assert shipper.report.errors == ["TimeoutError: slow"]
    assert [shipper.attempt() for _ in range(4)] == [True, True, False, True]
    assert shipper.report.errors == []
    said = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in said] == ["could", "still", "http://host", "could", "http://host"]
    assert "is back after" in said[2]


def test_pauses_grow_to_a_minute_while_it_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes away cost some fifteen attempts."""
    shipper = ship.Shipper(Storage(tmp_path), "small", "http://host")
    monkeypatch.setattr(shipper, "attempt", lambda: False)
    pauses: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return sum(pauses) > 600

    monkeypatch.setattr(shipper, "finish", lambda **_: shipper.report)
    shipper.follow(Stop(), 3.0)
    assert pauses[:6] == [3.0, 6.0, 12.0, 24.0, 48.0, 60.0]
    assert max(pauses) == 60.0
    assert len(pauses) <= 15


def test_passwords_in_messages_of_others_are_not_logged() -> None:
    record = logging.LogRecord(
        "x", logging.ERROR, "f", 1, "cannot open %s", ("postgresql://me:secret@db/mlflow",), None
    )
    assert ship._WithoutCredentials("%(message)s").format(record) == "cannot open postgresql://db/mlflow"
