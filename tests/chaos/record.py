"""What journals say while a study runs: read bit by bit, for a segment never changes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SEGMENT = re.compile(r"^(?P<writer>.+)-(?P<attempt>\d{4})-\d{5}\.jsonl$")


@dataclass
class Seen:
    """One cell, so far."""

    epochs: set[int] = field(default_factory=set)
    attempts: dict[int, int] = field(default_factory=dict)
    """Attempt -> the process that made it (of a worker group, its first worker)."""
    hosts: dict[int, str] = field(default_factory=dict)
    """Attempt -> the host of that process."""
    ended: set[int] = field(default_factory=set)
    """Attempts that came to some end."""
    starts: dict[int, int] = field(default_factory=dict)
    """Attempt -> finished epochs that it went on from."""
    done: int = 0
    """Ends of the whole run."""
    files: set[str] = field(default_factory=set)


class Journals:
    """The journals of these cells, on this machine's disk."""

    def __init__(self, runs: Path, cell_ids: Iterable[str]) -> None:
        self._runs = runs
        self.cells = {cell_id: Seen() for cell_id in cell_ids}

    def look(self) -> None:
        for cell_id, seen in self.cells.items():
            folder = self._runs / "cells" / cell_id / "journal"
            try:
                names = os.listdir(folder)
            except FileNotFoundError:
                continue
            for name in names:
                if name not in seen.files and (match := _SEGMENT.match(name)):
                    seen.files.add(name)
                    self._take(seen, match["writer"], int(match["attempt"]), (folder / name).read_text())

    def epochs(self) -> int:
        """Different epochs that were recorded."""
        return sum(len(seen.epochs) for seen in self.cells.values())

    def running(self, pids: set[int]) -> list[tuple[str, int]]:
        """Cells with their attempts that these processes are at work on."""
        found = []
        for cell_id, seen in self.cells.items():
            newest = max(seen.attempts, default=0)
            if newest and newest not in seen.ended and seen.attempts[newest] in pids:
                found.append((cell_id, newest))
        return found

    def unfinished(self) -> list[tuple[str, int]]:
        """Cells with their attempts that have begun and not ended."""
        return self.running({pid for seen in self.cells.values() for pid in seen.attempts.values()})

    @staticmethod
    def _take(seen: Seen, writer: str, attempt: int, text: str) -> None:
        for row in map(json.loads, text.splitlines()):
            match row["type"]:
                case "start":
                    seen.attempts[attempt] = _pid(writer)
                    seen.hosts[attempt] = writer.rpartition(".")[0]
                    seen.starts[attempt] = row["from_epoch"]
                case "metrics":
                    seen.epochs.add(row["epoch"])
                case "end":
                    seen.ended.add(attempt)
                    seen.done += row["state"] == "done"


def _pid(writer: str) -> int:
    return int(writer.rpartition(".")[2])


def metrics_of(view: Any) -> list[tuple[int, dict[str, float]]]:
    """A cell's numbers at every epoch, without the time they took."""
    return [(row.epoch, {k: v for k, v in row.metrics.items() if not k.startswith("time/")}) for row in view.rows]
