"""The study's own log: which launch did what with which cell, and why. Immutable segments, as the journal of a run."""

from __future__ import annotations

import json
from typing import Any

from simlap.record.journal import now_ms
from simlap.storage import Storage

SCHEMA_VERSION = 1


class EventLog:
    """`studies/<name>/events/<launch>-<seq>.jsonl`; one segment an event."""

    def __init__(self, study: Storage) -> None:
        self.study = study
        self.launch = max((int(name.split("-")[0]) for name in study.list("events")), default=0) + 1
        self._sequence = 0

    def write(self, kind: str, **fields: Any) -> None:
        row = {"schema_version": SCHEMA_VERSION, "t": now_ms(), "launch": self.launch, "type": kind, **fields}
        self.study.write(f"events/{self.launch:04d}-{self._sequence:05d}.jsonl", (json.dumps(row) + "\n").encode())
        self._sequence += 1


def read_events(study: Storage) -> list[dict[str, Any]]:
    """All events in order."""
    return [
        json.loads(line) for name in study.list("events") for line in study.read(f"events/{name}").decode().splitlines()
    ]


def stopped_cells(events: list[dict[str, Any]], scheduler: dict[str, Any]) -> dict[str, str]:
    """Cells that this study's scheduler, with these settings, stopped and has not started again since: id -> reason."""
    stopped: dict[str, str] = {}
    for event in events:
        if event["type"] == "cell_stopped" and event["scheduler"] == scheduler:
            stopped[event["cell_id"]] = event["reason"]
        elif event["type"] in ("cell_started", "cell_done"):
            stopped.pop(event["cell_id"], None)
    return stopped
