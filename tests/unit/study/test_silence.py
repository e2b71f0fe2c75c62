"""What is taken for hung, and what is only slow."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from simlap.errors import UserError
from simlap.hung import VARIABLE, hung_s
from simlap.storage import Storage, StorageError
from simlap.study.silence import Silence
from simlap.study.watch import StudyCallback
from tests.unit.study.pretend import pretend
from tests.unit.study.test_reconcile import plan


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_only_what_is_far_longer_than_an_epoch() -> None:
    clock = Clock()
    silence = Silence(60.0, clock)
    silence.began("a")
    silence.began("b")
    clock.now += 10_000
    assert silence.hung() == {}, "an epoch may take that long, as far as is known"
    silence.reported("a")
    assert silence.hung() == {}, "b's first epoch may take ten times as long"
    clock.now += 100_000 - 10_000 + 60
    assert silence.hung() == {}
    clock.now += 1
    assert silence.hung() == {"b": 100_061.0}
    silence.ended("b")
    assert silence.hung() == {}


def test_least() -> None:
    clock = Clock()
    silence = Silence(60.0, clock)
    silence.began("a")
    clock.now += 1
    silence.reported("a")
    clock.now += 69
    assert silence.hung() == {}
    clock.now += 2
    assert silence.hung() == {"a": 71.0}
    silence.began("a")  # tried again
    assert silence.hung() == {}


def test_what_comes_before_a_first_epoch_counts_until_more_is_known() -> None:
    clock = Clock()
    silence = Silence(5.0, clock)
    silence.began("a")
    clock.now += 30  # a process that starts, images that are decoded
    silence.reported("a")
    clock.now += 2
    silence.reported("a")
    clock.now += 25
    assert silence.hung() == {}
    clock.now += 1
    assert silence.hung() == {"a": 26.0}


def test_a_mistake_is_not_made_for_ever() -> None:
    """An epoch that is far longer than all before it comes to its end, after some attempts."""
    clock = Clock()
    silence = Silence(60.0, clock)
    silence.began("short")
    clock.now += 1
    silence.reported("short")
    silence.ended("short")
    attempts = 0
    while True:
        silence.began("long")
        attempts += 1
        clock.now += 500  # of 600 that it needs
        if not silence.hung():
            break
        silence.killed("long")
    assert attempts == 4, "after 70, 140 and 280 seconds it was killed"


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "inf", "nan"])
def test_a_wrong_limit_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(UserError, match=VARIABLE):
        hung_s()


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert hung_s() == 600
    monkeypatch.setenv(VARIABLE, "7.5")
    assert hung_s() == 7.5


def away(storage: Storage, path: str) -> bytes:
    raise StorageError("AWS Error NETWORK_CONNECTION")


def test_who_has_trained_is_left_to_be_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    made = plan(tmp_path)
    trains, evaluates = made.cells[:2]
    pretend(trains, "running", 1)
    pretend(evaluates, "running", evaluates.stage.experiment.train.epochs)
    attempts = {cell.cell_id[:3]: SimpleNamespace(cell=cell) for cell in (trains, evaluates)}
    given: Any = SimpleNamespace(attempts=attempts)
    unused: Any = None
    callback = StudyCallback(made, given, unused, unused, unused, unused)
    killed: list[str] = []
    monkeypatch.setattr("simlap.study.watch.ray.kill", killed.append)
    clock = Clock()
    callback._silence = Silence(1.0, clock)
    for name, attempt in attempts.items():
        trial: Any = SimpleNamespace(trial_id=name, temporary_state=SimpleNamespace(ray_actor=f"actor of {name}"))
        callback._trials[name] = trial
        callback._silence.began(attempt.cell.cell_id)
        clock.now += 0.1
        callback._silence.reported(attempt.cell.cell_id)
    clock.now += 100
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "read", away)
        callback.end_hung()
    assert killed == [], "where nobody can tell, nobody is killed"
    for _ in range(2):
        clock.now += 100
        callback.end_hung()
        assert killed == [f"actor of {trains.cell_id[:3]}"]
