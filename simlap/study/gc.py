"""What takes room and is needed by no study: found first, deleted only when asked to.

Needed are the cells, stages and trials of every study as it was last applied, those that it has no more (they are kept), and
of each finished run the checkpoint that its result names; of any other run, all of its checkpoints. Runs that `simlap run`
began belong to nobody's study and are left alone.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow.fs as pafs

from simlap.errors import UserError
from simlap.record.journal import cell_storage, now_ms, read_result, read_rows
from simlap.storage import Storage
from simlap.study.index import forget
from simlap.study.lease import BEAT_S, POLLS, is_dead
from simlap.study.searches import trial_cells
from simlap.train import manifest

IDLE_MS = 24 * 3600 * 1000
"""A run without an end that wrote nothing for so long is not running any more."""
Kind = Literal["cell", "checkpoint"]


@dataclass(frozen=True)
class Leftover:
    """Something that can go."""

    kind: Kind
    path: str
    """In the storage."""
    cell_id: str
    bytes: int
    why: str


def find_leftovers(storage: Storage, *, removed: bool = False) -> list[Leftover]:
    """Everything that no study needs. Nothing of a study that a launch holds, and nothing of a run that may be going on.

    Args:
        storage: that holds `cells/` and `studies/`.
        removed: cells of arms and seeds that their study file has no more are not needed either.
    """
    needed, held = _needed(storage, removed=removed, running=running_studies(storage))
    found = []
    for cell_id in storage.list("cells"):
        if cell_id in held:
            continue
        cell = cell_storage(storage, cell_id)
        rows = read_rows(cell)
        if not rows or not _is_over(rows):
            continue
        if cell_id not in needed and not _is_single(rows):
            found.append(Leftover("cell", f"cells/{cell_id}", cell_id, _size(cell), "no study has it"))
        else:
            found += _checkpoints(cell, cell_id)
    return found


def delete(storage: Storage, leftovers: list[Leftover]) -> None:
    """Delete them. Raises UserError where a launch holds a study by now: it may have begun to need some."""
    for name, held in running_studies(storage).items():
        raise UserError(
            f"study {name} is being run by process {held.get('pid')} on {held.get('host')}: wait for it, or stop it first",
            file=storage.describe(f"studies/{name}/lease.json"),
        )
    forget(storage, (leftover.cell_id for leftover in leftovers if leftover.kind == "cell"))
    for leftover in leftovers:
        if leftover.kind == "cell":  # in an order that leaves no run that looks finished
            for part in ("result.json", "checkpoints", "evaluations", "journal"):
                storage.delete(f"{leftover.path}/{part}")
        storage.delete(leftover.path)


def running_studies(storage: Storage) -> dict[str, dict[str, Any]]:
    """The leases of studies that a launch holds, by the study's name.

    A launch that was killed holds none: its process is gone, or, where that cannot be told from here, its counter stands still
    (`simlap.study.lease`).
    """
    found = {name: lease for name in storage.list("studies") if (lease := _lease(storage, name)) and not is_dead(lease)}
    still = dict(found)
    for _ in range(POLLS):
        if not still:
            break
        time.sleep(BEAT_S)
        still = {name: lease for name, lease in still.items() if _lease(storage, name) == lease}
    return {
        name: lease for name in found.keys() - still.keys() if (lease := _lease(storage, name)) and not is_dead(lease)
    }


def _lease(storage: Storage, study: str) -> dict[str, Any] | None:
    try:
        lease: dict[str, Any] = storage.child("studies", study).read_json("lease.json")
    except FileNotFoundError:
        return None
    return lease


def _needed(storage: Storage, *, removed: bool, running: Container[str]) -> tuple[set[str], set[str]]:
    """Ids of the cells that studies need, and of those that a launch holds."""
    needed: set[str] = set()
    held: set[str] = set()
    for name in storage.list("studies"):
        study = storage.child("studies", name)
        try:
            plan = study.read_json("plan.json")
        except FileNotFoundError:
            continue
        # arms whose search goes on have no cells of their own: those that they had are not of removed arms
        searched = {arm["name"] for arm in plan["arms"] if not arm["cells"]}
        again = [arm for arm in plan.get("kept", []) if arm["name"] in searched]
        own = _with_starts(storage, _ids([*plan["arms"], *again], [*plan.get("stages", []), *trial_cells(plan)]))
        kept = _with_starts(storage, _ids(plan.get("kept", []), plan.get("kept_trials", [])))
        needed |= own if removed else own | kept
        if name in running:
            held |= own | kept
    return needed, held


def _with_starts(storage: Storage, cell_ids: Iterable[str]) -> set[str]:
    """These cells, and what they started from."""
    found: set[str] = set()
    pending = [*cell_ids]
    while pending:
        cell_id = pending.pop()
        if cell_id not in found:
            found.add(cell_id)
            start = _start(storage, cell_id)
            pending += [] if start is None else [start]
    return found


def _start(storage: Storage, cell_id: str) -> str | None:
    """The cell that a run started from."""
    try:
        start = cell_storage(storage, cell_id).read_json("provenance.json").get("start")
    except (FileNotFoundError, ValueError):  # not begun, or not whole
        return None
    return None if start is None or start.startswith("weights:") else str(start)


def _ids(arms: list[dict[str, Any]], stages: list[dict[str, Any]]) -> Iterator[str]:
    for arm in arms:
        yield from (cell["cell_id"] for cell in arm["cells"])
    yield from (stage["cell_id"] for stage in stages)


def _is_over(rows: list[dict[str, Any]]) -> bool:
    return bool(rows[-1]["type"] == "end" or now_ms() - rows[-1]["t"] > IDLE_MS)


def _is_single(rows: list[dict[str, Any]]) -> bool:
    """Whether `simlap run` began it."""
    started = next((row for row in rows if row["type"] == "start"), {})
    words = str(started.get("provenance", {}).get("command", "")).split()
    return words[1:2] == ["run"]


def _checkpoints(cell: Storage, cell_id: str) -> Iterator[Leftover]:
    """Checkpoints of a finished run that its result does not name."""
    result = read_result(cell)
    if result is None:
        return
    kept = result["checkpoint"]["path"].split("/")[-1]
    names = manifest.names(cell.child("checkpoints"))
    if kept not in names:
        return  # its own is not there: what is there is the best there is
    for name in names:
        if name != kept:
            place = f"cells/{cell_id}/checkpoints/{name}"
            size = _size(cell.child("checkpoints", name))
            yield Leftover("checkpoint", place, cell_id, size, f"the result is of {kept}")


def _size(folder: Storage) -> int:
    """Bytes below a folder."""
    local = folder.local_path()
    system, path = pafs.FileSystem.from_uri(folder.uri) if local is None else (pafs.LocalFileSystem(), str(local))
    infos = system.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return sum(info.size for info in infos if info.type == pafs.FileType.File)
