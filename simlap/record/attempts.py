"""Which code a run's numbers are of: that of every attempt whose work is part of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class _Part:
    """What one attempt did."""

    start: tuple[int, int]
    """Epochs and steps it went on from."""
    code: str | None
    worked: bool = False
    """Whether it left anything that another attempt can go on from, as far as the journal tells."""


def start_rerun_of(rows: Sequence[dict[str, Any]]) -> int | None:
    """How often the stage it started from had been run anew by then; None where nothing says so. What began again started again.

    Args:
        rows: of the journal (`read_rows`).
    """
    starts = [row for row in rows if row["type"] == "start" and (row["from_epoch"], row["from_step"]) == (0, 0)]
    noted: int | None = starts[-1].get("provenance", {}).get("start_rerun") if starts else None
    return noted


def codes_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Hashes of the code, each once and in order; more than one: the run went on under other code than it began with.

    An attempt that goes on from an earlier point than another began at replaces the other's work. One that only evaluates a run
    that was done changes nothing about where its weights came from. Attempts that did not note their code do not count.

    Args:
        rows: of the journal (`read_rows`).
    """
    parts: list[_Part] = []
    current: _Part | None = None
    finished: int | None = None  # epochs of the run, once it was done
    for row in rows:
        match row["type"]:
            case "start":
                start = (row["from_epoch"], row["from_step"])
                if finished is not None and start[0] >= finished:
                    current = None
                    continue
                finished = None
                current = _Part(start, row.get("provenance", {}).get("code"))
                parts = [*(part for part in parts if part.worked and part.start < start), current]
            case "metrics" if current is not None:
                current.worked = True
            case "end" if current is not None:
                # interrupted in its first epoch, it may have saved that; an evaluation is part of the result
                current.worked |= row["state"] in ("interrupted", "done")
                finished = row["epoch"] if row["state"] == "done" else finished
    return list(dict.fromkeys(part.code for part in parts if part.worked and part.code is not None))


def was_saved(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether an attempt went on from a checkpoint: then there was one."""
    return any(row["type"] == "start" and (row["from_epoch"], row["from_step"]) > (0, 0) for row in rows)


def warnings_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a run's attempts want to be seen, each thing once and in order."""
    latest = {row["about"]: text for row in rows if "about" in row for text in row.get("warnings", ())}
    told = [text for row in rows if "about" not in row for text in row.get("warnings", ())]
    return list(dict.fromkeys([*told, *latest.values()]))
