"""A study whose stage runs with as many workers as there are nodes, and what became of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simlap.config import yaml
from simlap.record.journal import cell_storage, read_cell, read_rows
from simlap.storage import Storage
from tests.tiny import TREE

ELASTIC = {"workers": 2, "min_workers": 1}


def write_study(folder: Path, *, epochs: int) -> Path:
    """A cell of two workers, which goes on with one, and a cell of one. Returns the study file."""
    (folder / "base.yaml").write_text(yaml.dump({**TREE, "train": {"epochs": epochs, "batch_size": 127}}))
    study = {
        "name": "elastic",
        "base": "base.yaml",
        "factors": {
            "temperature": {"path": "method.temperature", "levels": [0.1, 0.2]},
            "size": {"path": "resources", "levels": {"group": ELASTIC, "one": {"workers": 1}}},
        },
        "zip": [["temperature", "size"]],
        "baseline": {"temperature": 0.1, "size": "group"},
        "seeds": 1,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.dump(study))
    return path


class Watch:
    """What the journal of one run says, and since when.

    Args:
        storage: of the run.
        cell_id: its id.
        alive: raises where the run's driver has ended.
    """

    def __init__(self, storage: Storage, cell_id: str, alive: Callable[[], None]) -> None:
        self.storage, self.cell_id, self._alive = storage, cell_id, alive

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read_rows(cell_storage(self.storage, self.cell_id))

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["type"] == "start"]

    @property
    def sizes(self) -> list[int]:
        """Workers of every attempt."""
        return [row["provenance"]["world_size"] for row in self.starts]

    def until(self, sizes: list[int], epochs: int, *, timeout_s: float) -> float:
        """Wait for an attempt with so many workers after those before it, and for so many epochs of it. Returns the seconds until
        the first of these was recorded."""
        began = time.monotonic()
        first: float | None = None
        while True:
            rows = self.rows
            found = [row["provenance"]["world_size"] for row in rows if row["type"] == "start"]
            assert found == sizes[: len(found)], f"{found} workers, not {sizes}"
            begun = max((i for i, row in enumerate(rows) if row["type"] == "start"), default=0)
            trained = sum(row["type"] == "metrics" for row in rows[begun:])
            if found == sizes and trained and first is None:
                first = time.monotonic() - began
            if first is not None and trained >= epochs:
                return first
            assert time.monotonic() - began < timeout_s, f"{found} workers and {trained} epochs after {timeout_s:g} s"
            self._alive()
            time.sleep(0.2)

    def check(self, losses: int) -> None:
        """Every epoch counts once; to grow redoes nothing, and a loss nothing but the epoch that no checkpoint covered.

        Args:
            losses: so many of the first attempts that trained were lost.
        """
        view = read_cell(self.storage, self.cell_id)
        assert view.state in ("interrupted", "running"), "Ctrl-C may leave a cell of a study where it is"
        assert [row.epoch for row in view.rows] == list(range(1, view.epoch + 1))
        reached = 0
        for number, start in enumerate(self.starts):
            begins, attempt = start["from_epoch"], start["attempt"]
            allowed = (reached - 1, reached) if 1 <= number <= losses else (reached,)
            assert begins in allowed, f"attempt {attempt} begins after {begins} epochs, {reached} were reached"
            trained = [row["epoch"] for row in self.rows if row["type"] == "metrics" and row["attempt"] == attempt]
            assert trained == list(range(begins + 1, begins + 1 + len(trained)))
            reached = begins + len(trained)
