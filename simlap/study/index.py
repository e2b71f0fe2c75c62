"""What a plan has to know of a cell, without reading its journal where nothing can have changed.

`studies/<name>/index.json` is written by launches, which hold the study; it is a shortcut and never the truth:

- a cell that is not in the listing of `cells/` (read once) has not begun;
- a cell that was `done` is believed to be as long as its `result.json` is the same file (one look); away from this machine's
  disks, as long as its folder is there: what is done stays done, and whoever takes it away (`forget`) says so;
- anything else is believed only while the run directory has the same segments as when it was read. They are immutable, and
  whoever works on the cell (another study, a `simlap run`, a launch that was killed) adds one; a listing tells.

Everything else is read from the journals.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from simlap.config import canonical_hash, evaluation_id
from simlap.config.schema import Evaluation
from simlap.record.attempts import codes_of, start_rerun_of
from simlap.record.journal import cell_storage, read_progress, read_rows, times_rerun
from simlap.record.view import CellState
from simlap.storage import Storage
from simlap.study.capacity import devices

SCHEMA_VERSION = 3
"""An index of another version is not looked at: the journals are read once more."""
_THREADS = 8
"""Object stores answer many requests at a time."""


@dataclass(frozen=True)
class CellFacts:
    """A cell as far as plans ask."""

    state: CellState = "new"
    epoch: int = 0
    """Finished epochs."""
    seconds: float = 0.0
    """Time of them; `time/epoch_s` summed."""
    workers: int = 1
    """Of the attempt that left `provenance.json`."""
    gpus: float = 0.0
    """Of each of them, in that attempt; 0 too where it does not say."""
    reason: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last epoch, and of the finished run on the test set."""
    evaluated: str | None = None
    """Digest of the protocols (`Wanted.digest`) that the finished run was all evaluated with; None where some are missing."""
    gpu_peak: int | None = None
    """Bytes that the finished run took of a GPU's memory at most."""
    gpu_total: int | None = None
    """Bytes of that GPU."""
    codes: list[str] = field(default_factory=list)
    """Hashes of the code that computed what is there of it, where attempts noted it; several: it went on under other code."""
    reruns: int = 0
    """How often it was discarded and begun anew."""
    start_rerun: int | None = None
    """How often the stage it started from had been, by then; None where it started from none, or did not note it."""
    stamp: str = ""
    """Changes with the run; see above."""

    @property
    def device_s(self) -> float:
        """Device time of the epochs that count, in seconds."""
        return self.seconds * self.devices

    @property
    def devices(self) -> float:
        """That it took at a time."""
        return devices(self.workers, self.gpus)

    @property
    def epoch_s(self) -> float | None:
        """Mean seconds of an epoch; None where none was measured."""
        return self.seconds / self.epoch if self.epoch and self.seconds > 0 else None


@dataclass(frozen=True)
class Wanted:
    """What a plan asks of a cell: one for all seeds of an arm."""

    evaluate: tuple[Evaluation, ...]
    digest: str

    @classmethod
    def of(cls, evaluate: Sequence[Evaluation]) -> Wanted:
        trees = [protocol.model_dump(mode="json", exclude={"every_epochs"}) for protocol in evaluate]
        return cls(tuple(evaluate), canonical_hash(trees))


class Index:
    """The facts of a study's cells. Look with one index for one plan: the listing of `cells/` is read once."""

    def __init__(self, storage: Storage, study: Storage) -> None:
        self.storage, self.study = storage, study
        self.entries = _load(study)
        self.begun = set(storage.list("cells"))
        self.read: list[str] = []
        """Cells whose journals had to be read, for tests and curiosity."""

    def facts(self, wanted: dict[str, Wanted]) -> dict[str, CellFacts]:
        """Facts of the cells with these ids, in that order."""
        begun = [cell_id for cell_id in wanted if cell_id in self.begun]
        with ThreadPoolExecutor(1 if self.storage.is_local else _THREADS) as pool:
            valid = dict(
                zip(begun, pool.map(lambda cell_id: self._valid(cell_id, wanted[cell_id]), begun), strict=True)
            )
            stale = [cell_id for cell_id in begun if not valid[cell_id]]
            for cell_id, facts in zip(
                stale, pool.map(lambda c: read_facts(self.storage, c, wanted[c]), stale), strict=True
            ):
                self.entries[cell_id] = facts
        self.read += stale
        return {cell_id: self.entries[cell_id] if cell_id in valid else CellFacts() for cell_id in wanted}

    def recall(self, cell_ids: Iterable[str]) -> list[CellFacts]:
        """Facts of cells that no arm has any more: as they were when they were last looked at."""
        found = []
        for cell_id in cell_ids:
            if cell_id not in self.entries and cell_id in self.begun:
                self.entries[cell_id] = read_facts(self.storage, cell_id, Wanted.of(()))
            found.append(self.entries.get(cell_id, CellFacts()))
        return found

    def save(self) -> None:
        """Write what is known now; only for who holds the study. Cells that have gone are left out."""
        cells = {cell_id: _plain(facts) for cell_id, facts in self.entries.items() if cell_id in self.begun}
        text = json.dumps({"schema_version": SCHEMA_VERSION, "cells": cells}, separators=(",", ":"), allow_nan=True)
        self.study.write("index.json", text.encode())

    def _valid(self, cell_id: str, wanted: Wanted) -> bool:
        entry = self.entries.get(cell_id)
        if entry is None or entry.state == "new":
            return False
        if entry.state == "done":
            return entry.evaluated == wanted.digest and (
                not self.storage.is_local or entry.stamp == _stamp(self.storage, cell_id, done=True)
            )
        return entry.stamp == _stamp(self.storage, cell_id, done=False)


def read_facts(storage: Storage, cell_id: str, wanted: Wanted) -> CellFacts:
    """The facts of one cell, from its journal and its result."""
    cell = cell_storage(storage, cell_id)
    before = _stamp(
        storage, cell_id, done=False
    )  # first: a segment that comes meanwhile makes the facts old, not wrong
    rows = read_rows(cell)
    progress = read_progress(cell, rows)
    if progress.state == "new":
        return CellFacts(reruns=times_rerun(cell))
    done = progress.state == "done"
    metrics = progress.rows[-1].metrics if progress.rows else {}
    evaluated = None
    if progress.result is not None:
        ids = [evaluation_id(protocol, progress.result["checkpoint"]["sha256"]) for protocol in wanted.evaluate]
        found = [progress.result["evaluations"].get(one) for one in ids]
        metrics = {**metrics, **{k: v for one in found if one for k, v in one.items() if done or "test/" not in k}}
        evaluated = wanted.digest if all(one is not None for one in found) else None
    try:
        provenance = cell.read_json("provenance.json")
    except FileNotFoundError:
        provenance = {}
    memory = (progress.result or {}).get("gpu_memory", {})
    return CellFacts(
        state=progress.state,
        epoch=progress.rows[-1].epoch if progress.rows else 0,
        seconds=sum(row.metrics.get("time/epoch_s", 0.0) for row in progress.rows),
        reason=progress.reason,
        metrics=metrics,
        evaluated=evaluated,
        workers=provenance.get("world_size", 1),
        gpus=provenance.get("gpus_per_worker", 0.0),
        gpu_peak=memory.get("peak"),
        gpu_total=memory.get("total"),
        codes=codes_of(rows),
        reruns=times_rerun(cell),
        start_rerun=start_rerun_of(rows),
        stamp=_stamp(storage, cell_id, done=True) if done else before,
    )


def forget(storage: Storage, cell_ids: Iterable[str]) -> None:
    """Take cells out of the indexes of all studies: for whoever is about to delete them."""
    gone = set(cell_ids)
    for name in storage.list("studies"):
        study = storage.child("studies", name)
        entries = _load(study)
        if gone & entries.keys():
            cells = {cell_id: _plain(facts) for cell_id, facts in entries.items() if cell_id not in gone}
            study.write("index.json", json.dumps({"schema_version": SCHEMA_VERSION, "cells": cells}).encode())


def _load(study: Storage) -> dict[str, CellFacts]:
    try:
        index = study.read_json("index.json")
    except (FileNotFoundError, ValueError):  # none yet, or not whole: the journals have everything
        return {}
    if index.get("schema_version") != SCHEMA_VERSION:
        return {}
    return {cell_id: CellFacts(**entry) for cell_id, entry in index["cells"].items()}


def _plain(facts: CellFacts) -> dict[str, Any]:
    return {key: value for key, value in vars(facts).items() if value not in (None, {}, [], "")}


def _stamp(storage: Storage, cell_id: str, *, done: bool) -> str:
    """Of the result, where it is done, on a disk; of the segments' names otherwise."""
    if done and (path := storage.local_path(f"cells/{cell_id}/result.json")) is not None:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return ""
        return f"{status.st_mtime_ns} {status.st_size}"
    path = storage.local_path(f"cells/{cell_id}/journal")
    if path is None:
        names = cell_storage(storage, cell_id).list("journal")
    else:
        try:
            names = sorted(name for name in os.listdir(path) if ".tmp-" not in name)
        except FileNotFoundError:
            names = []
    return canonical_hash(names)
