"""What Ray does beside training interrupts nobody, and training may interrupt it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from simlap.run.priority import batch_priority, normal_priority

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="only Linux has scheduling policies")


def of_child() -> int:
    code = "import os; print(os.sched_getscheduler(0))"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


def in_thread() -> list[int]:
    """Policies of a new thread, before and after it has asked for normal priority."""
    found: list[int] = []

    def look() -> None:
        found.append(os.sched_getscheduler(0))
        normal_priority()
        found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found


def test_what_is_started_within_has_batch_priority_and_nothing_else() -> None:
    before = os.sched_getscheduler(0)
    with batch_priority():
        assert of_child() == os.SCHED_BATCH
        assert in_thread() == [os.SCHED_BATCH, os.SCHED_OTHER]
        assert os.sched_getscheduler(0) == os.SCHED_BATCH, "another thread's policy is its own"
    assert os.sched_getscheduler(0) == before
    assert of_child() == before


def test_it_ends_with_an_error_too() -> None:
    before = os.sched_getscheduler(0)
    with pytest.raises(RuntimeError), batch_priority():
        raise RuntimeError
    assert os.sched_getscheduler(0) == before


def test_where_it_is_forbidden_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError

    before = os.sched_getscheduler(0)
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with batch_priority():
        assert os.sched_getscheduler(0) == before


def test_another_policy_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_IDLE)
    monkeypatch.setattr(os, "sched_setscheduler", lambda *arguments: asked.append(arguments))
    normal_priority()
    assert asked == []
