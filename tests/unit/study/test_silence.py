"""What is taken for hung, and what is only slow."""

from __future__ import annotations

import pytest

from simlap.errors import UserError
from simlap.hung import VARIABLE, hung_s
from simlap.study.silence import Silence


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
