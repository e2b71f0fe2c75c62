"""The shipping process, seen from its driver."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from simlap.record import ship
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
