"""The study's log: one segment an event, joined in blocks, each event read once whenever a writer dies."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simlap.storage import Storage
from simlap.study.events import EventLog, read_events, segments


def numbers(study: Storage) -> list[int]:
    return [event["number"] for event in read_events(study)]


def test_one_segment_an_event_until_a_block_is_full(tmp_path: Path) -> None:
    log = EventLog(Storage(tmp_path), block=3)
    log.write("a", number=0)
    log.write("a", number=1)
    assert len(Storage(tmp_path).list("events")) == 2
    log.write("a", number=2)
    assert Storage(tmp_path).list("events") == ["0001-00000-00002.jsonl"]
    log.write("a", number=3)
    assert numbers(Storage(tmp_path)) == [0, 1, 2, 3]
    log.close()
    assert numbers(Storage(tmp_path)) == [0, 1, 2, 3]


def test_every_event_is_written_twice_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    def counted(self: Storage, path: str, data: bytes) -> None:
        nonlocal written
        written += len(data)
        write(self, path, data)

    write = Storage.write
    monkeypatch.setattr(Storage, "write", counted)
    log = EventLog(Storage(tmp_path), block=10)
    for number in range(100):
        log.write("a", number=number)
    log.close()
    size = sum(len(Storage(tmp_path).read(f"events/{name}")) for name in Storage(tmp_path).list("events"))
    assert written == 2 * size
    assert len(Storage(tmp_path).list("events")) == 10


class Killed(BaseException):
    """The process is gone."""


@settings(max_examples=60, deadline=None)
@given(
    launches=st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 12)), min_size=1, max_size=4),
    block=st.integers(2, 4),
)
def test_a_kill_at_any_point_loses_and_doubles_nothing(
    tmp_path_factory: pytest.TempPathFactory, launches: list[tuple[int, bool, int]], block: int
) -> None:
    """A launch writes some events, may close, and dies after so many more writes and deletions."""
    study = Storage(tmp_path_factory.mktemp("study"))
    published: list[int] = []
    for events, close, life in launches:
        steps = 0

        class Mortal(Storage):
            def _step(self) -> None:
                nonlocal steps
                steps += 1
                if steps > life:  # noqa: B023 - used in this round only
                    raise Killed

            def write(self, path: str, data: bytes) -> None:
                self._step()
                super().write(path, data)

            def delete(self, path: str) -> None:
                self._step()
                super().delete(path)

        with contextlib.suppress(Killed):
            log = EventLog(Mortal(study.uri), block=block)
            for _ in range(events):
                number = len(published)
                try:
                    log.write("a", number=number)
                finally:
                    if number in numbers(study):
                        published.append(number)
            if close:
                log.close()
        assert numbers(study) == published
    EventLog(study)
    assert numbers(study) == published
    assert len(study.list("events")) == len(segments(study))


def test_a_block_that_cannot_be_written_loses_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(Storage(tmp_path), block=3)
    write = Storage.write

    def full(self: Storage, path: str, data: bytes) -> None:
        if path.count("-") == 2:
            raise OSError("disk full")
        write(self, path, data)

    monkeypatch.setattr(Storage, "write", full)
    for number in range(4):
        log.write("a", number=number)
    assert numbers(Storage(tmp_path)) == [0, 1, 2, 3]
    monkeypatch.undo()
    log.write("a", number=4)
    assert Storage(tmp_path).list("events") == ["0001-00000-00004.jsonl"]


@pytest.mark.parametrize("block", [3, 100])
def test_a_launch_that_was_thought_dead_doubles_nothing(tmp_path: Path, block: int) -> None:
    """It goes on writing, and joins its own events, after its successor has joined them."""
    study = Storage(tmp_path)
    stopped = EventLog(study, block=block)
    for number in range(5):
        stopped.write("a", number=number)
    successor = EventLog(study)
    successor.write("a", number=9)
    stopped.write("a", number=5)
    assert numbers(study) == [0, 1, 2, 3, 4, 5, 9]
    stopped.close()
    assert numbers(study) == [0, 1, 2, 3, 4, 5, 9]
    EventLog(study)
    assert numbers(study) == [0, 1, 2, 3, 4, 5, 9]
    assert len(study.list("events")) == len(segments(study))


def test_blocks_that_overlap_are_read_once(tmp_path: Path) -> None:
    study = Storage(tmp_path)
    for first, last in ((0, 3), (2, 5), (3, 4)):
        rows = [f'{{"number": {number}}}\n' for number in range(first, last + 1)]
        study.write(f"events/0001-{first:05d}-{last:05d}.jsonl", "".join(rows).encode())
    assert numbers(study) == [0, 1, 2, 3, 4, 5]
    assert len(segments(study)) == 2, "one lies inside another"


def test_what_is_written_after_the_lease_was_lost_is_not(tmp_path: Path) -> None:
    lost = False
    log = EventLog(Storage(tmp_path), lost=lambda: lost)
    log.write("a", number=0)
    log.write("a", number=1)
    lost = True
    log.write("a", number=2)
    log.close()
    assert numbers(Storage(tmp_path)) == [0, 1]
    assert len(Storage(tmp_path).list("events")) == 2, "not joined either"
