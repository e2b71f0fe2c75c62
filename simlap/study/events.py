"""The study's own log: which launch did what with which cell, and why. Immutable segments, as the journal of a run.

`studies/<name>/events/<launch>-<sequence>.jsonl` is one event: writing one costs the same however many there are. When
`BLOCK` of them have come together they are written again as one block, `<launch>-<first>-<last>.jsonl`, and then deleted, so
every event is written at most twice and a reader opens few files. A block is published before what it covers is deleted: after
a kill between the two, readers pass over what a block covers. Blocks may overlap where a launch that was thought dead went on
writing while its successor joined what it had left; an event is known by its launch and number, and read once.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from simlap.record.journal import now_ms
from simlap.redact import hide_in_tree
from simlap.storage import Storage, StorageFullError

_log = logging.getLogger("simlap.study")
SCHEMA_VERSION = 1
ENVELOPE = frozenset({"schema_version", "launch", "type", "t", "s"})
"""What every event has, beside what it says."""
BLOCK = 1000
_NAME = re.compile(r"^(\d+)-(\d+)(?:-(\d+))?\.jsonl$")


class Segment(NamedTuple):
    """A file of the log; they sort in the order of events."""

    launch: int
    first: int
    last: int
    name: str

    @property
    def is_block(self) -> bool:
        return self.name.count("-") == 2


class EventLog:
    """The writer of one launch, which holds the study. Begins by joining what a killed launch left in pieces.

    Args:
        study: its folder.
        block: so many events are joined.
        clock: seconds, never set back: each event says how long after the launch's beginning it was.
        lost: whether the launch holds the study no more; then nothing is written, for the log is another launch's.
    """

    def __init__(
        self,
        study: Storage,
        *,
        block: int = BLOCK,
        lost: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.study, self.block, self._lost, self._clock = study, block, lost, clock
        self._began = clock()
        left = segments(study)
        self.launch = max((segment.launch for segment in left), default=0) + 1
        self._sequence = 0
        self._begun = 0
        """Sequence of the first event that is in no block."""
        self._rows: list[bytes] = []
        """Events since then."""
        pieces: dict[int, list[Segment]] = {}
        for segment in left:
            if not segment.is_block:
                pieces.setdefault(segment.launch, []).append(segment)
        for launch, found in pieces.items():
            self._join(launch, found, [study.read(f"events/{segment.name}") for segment in found])
        _sweep(study)

    def write(self, kind: str, **fields: Any) -> None:
        """Publish an event."""
        if self._lost():
            return
        row = {
            "schema_version": SCHEMA_VERSION,
            "t": now_ms(),
            "launch": self.launch,
            "type": kind,
            **hide_in_tree(fields),
        }
        row["s"] = round(self._clock() - self._began, 3)
        data = (json.dumps(row) + "\n").encode()
        self.study.write(f"events/{self.launch:04d}-{self._sequence:05d}.jsonl", data)
        self._sequence += 1
        self._rows.append(data)
        if len(self._rows) >= self.block:
            try:
                self.close()
            except OSError as error:  # the event itself is safe; the next one tries again, or the next launch
                _log.warning("events of %s could not be joined: %s", self.study.describe(), error)

    def close(self) -> None:
        """Join the events written so far; more may follow. At the end of a launch, which need not live to do it."""
        if self._lost():
            return
        numbers = range(self._begun, self._sequence)
        own = [Segment(self.launch, n, n, f"{self.launch:04d}-{n:05d}.jsonl") for n in numbers]
        self._join(self.launch, own, self._rows)
        self._begun, self._rows = self._sequence, []

    def _join(self, launch: int, pieces: list[Segment], rows: list[bytes]) -> None:
        if len(pieces) < 2:
            return
        first, last = pieces[0].first, pieces[-1].last
        self.study.write(f"events/{launch:04d}-{first:05d}-{last:05d}.jsonl", b"".join(rows))
        for piece in pieces:
            self.study.delete(f"events/{piece.name}")


def _sweep(study: Storage) -> None:
    """Delete what a block covers: whoever wrote the block did not live to do it."""
    needed = {segment.name for segment in segments(study)}
    for name in study.list("events"):
        if name not in needed:
            study.delete(f"events/{name}")


def segments(study: Storage) -> list[Segment]:
    """The files that together hold every event, in order. Only blocks may have some in common, at their ends."""
    found = [
        Segment(int(m[1]), int(m[2]), int(m[3] or m[2]), name)
        for name in study.list("events")
        if (m := _NAME.match(name))
    ]
    blocks: dict[int, list[Segment]] = {}
    for segment in found:
        if segment.is_block:
            blocks.setdefault(segment.launch, []).append(segment)

    def is_covered(one: Segment) -> bool:
        return any(b.first <= one.first and one.last <= b.last and b != one for b in blocks.get(one.launch, ()))

    return sorted(segment for segment in found if not is_covered(segment))


def read_events(study: Storage) -> list[dict[str, Any]]:
    """All events in order, each once."""
    rows: list[dict[str, Any]] = []
    read: dict[int, int] = {}  # launch -> how many of its events
    for segment in segments(study):
        try:
            data = study.read(f"events/{segment.name}")
        except FileNotFoundError:
            return read_events(study)  # it was joined into a block since it was listed, which happens finitely often
        lines = data.decode().splitlines()
        rows.extend(json.loads(line) for line in lines[max(0, read.get(segment.launch, 0) - segment.first) :])
        read[segment.launch] = segment.last + 1
    return rows


def launch_ms(event: Mapping[str, Any], first_ms: int) -> float:
    """Milliseconds that a launch had taken by one of its events. Where that does not say it (it is of an earlier version), by
    the time of day, of which a clock that was set back makes nothing.

    Args:
        event: of the launch.
        first_ms: time of day of its first one.
    """
    seconds = event.get("s")
    return 1000.0 * seconds if seconds is not None else float(max(0, event["t"] - first_ms))


def undecided_cells(events: list[dict[str, Any]]) -> set[str]:
    """Cells that a launch began, or was about to try again, and of which it then said nothing more: it was killed."""
    undecided: set[str] = set()
    for event in events:
        if event["type"] in ("cell_started", "cell_retried"):
            undecided.add(event["cell_id"])
        elif event["type"] in ("cell_done", "cell_failed", "cell_stopped"):
            undecided.discard(event["cell_id"])
    return undecided


def stopped_cells(events: list[dict[str, Any]], scheduler: dict[str, Any]) -> dict[str, str]:
    """Cells that this study's scheduler, with these settings, stopped and has not started again since: id -> reason."""
    stopped: dict[str, str] = {}
    for event in events:
        if event["type"] == "cell_stopped" and event["scheduler"] == scheduler:
            stopped[event["cell_id"]] = event["reason"]
        elif event["type"] in ("cell_started", "cell_done"):
            stopped.pop(event["cell_id"], None)
    return stopped


def persist(write: Callable[[], None]) -> None:
    """A storage that hiccups must not end the study: Tune would kill every running cell."""
    for pause in (0.5, 2.0, None):
        try:
            write()
            return
        except OSError as error:
            if pause is None or isinstance(error, StorageFullError):  # room is not made within seconds
                _log.exception("the study's log could not be written; the next launch makes up for it")
                return
            time.sleep(pause)
