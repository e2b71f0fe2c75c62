"""A command does not wait for ever for a Ray that is gone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from simlap.run import head
from simlap.run.head import LOST_S, SETTING, HeadWatch, patience


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "POLL_S", 0.02)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


class Heard:
    """A watch of one place, and what it said."""

    def __init__(self, port: int, patience_s: float) -> None:
        self.said: list[str] = []
        self.last: list[str] = []
        self.ended = threading.Event()
        self.watch = HeadWatch(
            [("the head", "127.0.0.1", port)], say=self.said.append, end=self._end, patience_s=patience_s
        )
        self.watch.start()

    def _end(self, text: str) -> None:
        self.last.append(text)
        self.ended.set()


def wait_until_said(heard: Heard, number: int) -> None:
    end = time.monotonic() + 10
    while len(heard.said) < number:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_head_that_is_gone_is_said_to_be_and_ends_the_command(server: socket.socket) -> None:
    heard = Heard(server.getsockname()[1], patience_s=0.4)
    time.sleep(0.2)
    assert heard.said == []
    server.close()
    assert heard.ended.wait(10)
    assert heard.said == ["the head does not answer; this command waits for it until 0 s are over"]
    assert heard.last == ["the head has not answered for 0 s"]
    heard.watch.join(5)
    assert not heard.watch.is_alive()


def test_a_head_that_comes_back_in_time_ends_nothing(server: socket.socket) -> None:
    port = server.getsockname()[1]
    heard = Heard(port, patience_s=2.0)
    server.close()
    wait_until_said(heard, 1)
    with socket.create_server(("127.0.0.1", port)):
        wait_until_said(heard, 2)
        assert heard.said[1].startswith("the head answers again, after ")
        time.sleep(0.1)
        assert len(heard.said) == 2, "once"
        heard.watch.stop()
        heard.watch.join(5)
    assert heard.last == []


def test_a_watch_that_was_stopped_says_nothing(server: socket.socket) -> None:
    heard = Heard(server.getsockname()[1], patience_s=0.1)
    heard.watch.stop()
    heard.watch.join(5)
    server.close()
    time.sleep(0.3)
    assert (heard.said, heard.last) == ([], [])


@pytest.mark.parametrize(("value", "seconds"), [(None, LOST_S), ("600", 540.0), ("soon", LOST_S), ("0", 1.0)])
def test_how_long_it_is_waited_for(value: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SETTING, raising=False)
    if value is not None:
        monkeypatch.setenv(SETTING, value)
    assert patience() == seconds
